// One image large, and a slider through its stages. The pictures are those of the rows below.
for (const viewer of document.querySelectorAll(".viewer")) {
  const [screen, slider, name] = [".screen", "input", "output"].map((each) => viewer.querySelector(each));
  const ticks = viewer.querySelectorAll(".ticks li");
  const rows = [...document.querySelectorAll(".picture-row")];

  const show = () => {
    name.value = ticks[slider.value].textContent;
    slider.setAttribute("aria-valuetext", name.value);
    for (const each of viewer.querySelectorAll("[data-column]")) {
      each.classList.toggle("shown", each.dataset.column === slider.value);
    }
  };

  // All stages lie on the screen, one upon the other, so that none has to be loaded when its turn comes.
  const choose = (row) => {
    const layers = [...row.querySelectorAll(".cell")].map((cell) => {
      const layer = document.createElement("div");
      layer.dataset.column = cell.dataset.column;
      layer.append(...[...cell.querySelectorAll("img")].map((image) => image.cloneNode()));
      return layer;
    });
    screen.replaceChildren(...layers);
    viewer.querySelector(".which").textContent = row.querySelector("figcaption").textContent;
    show();
  };

  const choice = (row, index) => {
    const label = document.createElement("label");
    const button = Object.assign(document.createElement("input"), { type: "radio", name: "image", checked: !index });
    const picture = row.querySelector(".cell img").cloneNode();
    picture.alt = row.querySelector("figcaption b").textContent;
    button.addEventListener("change", () => choose(row));
    label.append(button, picture);
    return label;
  };

  const drag = (event) => {
    if (!event.buttons) return;
    const { left, width } = event.currentTarget.getBoundingClientRect();
    slider.value = Math.floor((ticks.length * (event.clientX - left)) / width);
    show();
  };
  for (const area of [screen, viewer.querySelector(".ticks")]) {
    area.addEventListener("pointerdown", drag);
    area.addEventListener("pointermove", drag);
    area.addEventListener("dragstart", (event) => event.preventDefault());
  }

  slider.addEventListener("input", show);
  if (rows.length > 1) viewer.querySelector(".choices").append(...rows.map(choice));
  else viewer.querySelector(".choices").remove();
  viewer.hidden = false;
  choose(rows[0]);
}
