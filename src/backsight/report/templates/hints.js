// What stands in a title shows at once, for the pointer, a finger and the keyboard, and Escape puts it away.
{
  const hint = document.createElement("div");
  hint.id = "hint";
  hint.setAttribute("role", "tooltip");
  hint.hidden = true;
  document.body.append(hint);

  for (const each of document.querySelectorAll("[title]")) {
    each.dataset.hint = each.title;
    each.removeAttribute("title");
  }

  let place = null;
  const hide = () => {
    place?.removeAttribute("aria-describedby");
    place = null;
    hint.hidden = true;
  };

  const show = (target) => {
    hide();
    place = target;
    hint.textContent = place.dataset.hint;
    hint.hidden = false;
    if (!place.hasAttribute("aria-label")) place.setAttribute("aria-describedby", "hint");
    move();
  };

  // Above its place if there is room, else below, and never over the edge of the window.
  const move = () => {
    if (!place) return;
    const [at, own] = [place.getBoundingClientRect(), hint.getBoundingClientRect()];
    const middle = at.left + at.width / 2 - own.width / 2;
    hint.style.left = `${Math.max(8, Math.min(middle, document.documentElement.clientWidth - own.width - 8))}px`;
    hint.style.top = `${at.top < own.height + 8 ? at.bottom : at.top - own.height}px`;
  };

  const follow = (event) => {
    if (event.target === hint) return; // the pointer may go there, to read or to copy
    const target = event.target.closest?.("[data-hint]");
    if (target) show(target);
    else hide();
  };
  for (const name of ["pointerover", "pointerdown", "focusin"]) document.addEventListener(name, follow);
  for (const name of ["scroll", "resize"]) addEventListener(name, move, { capture: true, passive: true });

  // Arrows go from value to value of a chart, which is one stop of the Tab key.
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const values = [...(event.target.closest(".plot")?.querySelectorAll(".band") ?? [])];
    const target = values[values.indexOf(event.target) + step];
    if (!target) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    target.tabIndex = 0;
    target.focus();
  });
}
