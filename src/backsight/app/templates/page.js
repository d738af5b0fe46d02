// The page's own script: what gradio has no component for. It keeps the address in step with the view, moves through
// layers and before/after on the spot, and takes pictures in. Everything listens at the document, since views are replaced.
(() => {
  const root = () => location.pathname.replace(/\/?$/, "/");
  const current = (selector) => [...document.querySelectorAll(selector)].find((each) => each.offsetParent !== null);

  // ---- the theme: as the system has it, until the visitor says otherwise
  const wanted = localStorage.getItem("theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const applyTheme = (name) => document.body && document.body.classList.toggle("dark", name === "dark");
  const ready = (act) => (document.body ? act() : document.addEventListener("DOMContentLoaded", act));
  ready(() => applyTheme(wanted));

  // ---- values that gradio holds
  function put(name, value) {
    for (const element of document.querySelectorAll(`#${name}, #${name} *`)) element.dispatchEvent(new CustomEvent("put", { detail: value }));
  }
  const refresh = (view) => put("open-" + (view || document.querySelector("[role=tab][aria-selected=true]").dataset.tabId), String(Date.now()));
  function choose(name, value) {
    put(name, value);
    refresh();
  }

  // ---- the address follows the view
  function showAddress(view) {
    const query = view.dataset.query;
    if (location.search !== "?" + query) history.replaceState(null, "", root() + "?" + query);
    const picture = new URLSearchParams(query).get("picture");
    for (const button of document.querySelectorAll("[data-for=picture] [data-picture]"))
      button.setAttribute("aria-pressed", String(button.dataset.picture === picture));
    const other = new URLSearchParams(query).get("other");
    for (const button of document.querySelectorAll("[data-for=other] [data-picture]"))
      button.setAttribute("aria-pressed", String(button.dataset.picture === other));
  }
  function set(view, name, value) {
    const query = new URLSearchParams(view.dataset.query);
    query.set(name, value);
    view.dataset.query = query.toString().replaceAll("%2F", "/").replaceAll("%2C", ",");
    for (const link of view.querySelectorAll("[data-link], [data-file]"))
      link.setAttribute("href", link.getAttribute("href").replace(/\?.*/, "?" + view.dataset.query));
    showAddress(view);
  }
  // A view that is made anew must not take the keyboard's place away: the same thing in the new view gets it back.
  const NAMED = ["data-case", "data-layers", "data-wipe", "data-copy"];
  let focused = null;
  document.addEventListener("focusin", (event) => {
    const name = NAMED.find((each) => event.target.hasAttribute(each));
    focused = name && { element: event.target, find: `[${name}="${event.target.getAttribute(name)}"]` };
  });
  function keepFocus() {
    if (!focused || focused.element.isConnected || document.activeElement !== document.body) return;
    const successor = current(focused.find);
    focused = null;
    if (successor) successor.focus({ preventScroll: true });
  }
  let shown = "";
  const watch = () => {
    const view = current(".view");
    if (view && view.dataset.query !== shown) { shown = view.dataset.query; showAddress(view); }
    for (const box of document.querySelectorAll("[data-mask]:not([data-ready])")) {
      box.dataset.ready = "";
      new MaskEditor(box).announce();
    }
    keepFocus();
    for (const button of document.querySelectorAll("[data-camera][hidden]"))
      button.hidden = !(navigator.mediaDevices && navigator.mediaDevices.getUserMedia);
  };
  ready(() => new MutationObserver(watch).observe(document.body, { childList: true, subtree: true }));

  // ---- layers, before and after
  function layer(model, index) {
    const bars = [...model.querySelectorAll("[data-layer]")], bar = bars[index];
    for (const each of bars) each.setAttribute("aria-pressed", String(each === bar));
    const slider = model.querySelector("[data-layers]");
    slider.value = index;
    slider.setAttribute("aria-valuetext", `${bar.dataset.layer}, error ${bar.dataset.error}`);
    for (const each of model.querySelectorAll("[data-name]")) each.textContent = bar.dataset.layer;
    for (const each of model.querySelectorAll("[data-error]:not([data-layer])")) each.textContent = bar.dataset.error;
    const frame = model.querySelector("[data-frame]");
    frame.src = bar.dataset.src;
    frame.alt = frame.alt.replace(/ from .*/, " from " + bar.dataset.layer);
    set(model.closest(".view"), "at", bar.dataset.layer);
    shown = model.closest(".view").dataset.query;
    put("at", bar.dataset.layer);
  }
  document.addEventListener("input", (event) => {
    const at = event.target;
    if (at.matches("[data-wipe]")) at.parentElement.style.setProperty("--at", at.value + "%");
    if (at.matches("[data-layers]")) layer(at.closest(".model-view"), Number(at.value));
  });

  // ---- mask editors: pictures under a grid whose cells are chosen
  const runs = (cells) => {
    const found = [];
    cells.forEach((chosen, index) => {
      const last = found[found.length - 1];
      if (chosen && last && last[1] === index - 1) last[1] = index;
      else if (chosen) found.push([index, index]);
    });
    return found.map(([start, stop]) => (stop > start ? `${start}-${stop}` : `${start}`)).join(",");
  };
  class MaskEditor {
    constructor(box) {
      this.box = box;
      this.rows = Number(box.dataset.rows);
      this.columns = Number(box.dataset.columns);
      this.cells = new Array(this.rows * this.columns).fill(false);
      for (const part of box.dataset.value.split(",").filter(Boolean)) {
        const [start, stop] = part.split("-").map(Number);
        this.cells.fill(true, start, (stop === undefined ? start : stop) + 1);
      }
      this.field = box.querySelector(".mask-cells");
      this.canvas = box.querySelector("canvas");
      this.at = 0;
      this.field.addEventListener("pointerdown", (event) => this.press(event));
      this.field.addEventListener("pointermove", (event) => this.paint !== undefined && this.move(event));
      for (const kind of ["pointerup", "pointercancel"]) this.field.addEventListener(kind, () => this.release());
      this.field.addEventListener("keydown", (event) => this.type(event));
      for (const kind of ["focus", "blur"]) this.field.addEventListener(kind, () => this.draw());
      box.addEventListener("click", (event) => event.target.dataset.fill && this.fill(event.target.dataset.fill));
      new ResizeObserver(() => this.draw()).observe(this.field);
    }
    under(event) {
      const box = this.field.getBoundingClientRect();
      const place = (offset, length, count) => Math.max(0, Math.min(count - 1, Math.floor((offset / length) * count)));
      return place(event.clientY - box.top, box.height, this.rows) * this.columns + place(event.clientX - box.left, box.width, this.columns);
    }
    press(event) {
      this.field.setPointerCapture(event.pointerId);
      this.at = this.under(event);
      this.paint = !this.cells[this.at];
      this.stroke(this.at);
    }
    move(event) {
      const next = this.under(event), [y0, x0] = this.place(this.at), [y1, x1] = this.place(next);
      const steps = Math.max(Math.abs(y1 - y0), Math.abs(x1 - x0), 1);
      for (let step = 1; step <= steps; step++)
        this.stroke(Math.round(y0 + ((y1 - y0) * step) / steps) * this.columns + Math.round(x0 + ((x1 - x0) * step) / steps));
      this.at = next;
    }
    place(index) { return [Math.floor(index / this.columns), index % this.columns]; }
    stroke(index) {
      const reach = this.columns > 24 ? 1 : 0, [row, column] = this.place(index); // a brush is three cells wide
      for (let y = Math.max(0, row - reach); y <= Math.min(this.rows - 1, row + reach); y++)
        for (let x = Math.max(0, column - reach); x <= Math.min(this.columns - 1, column + reach); x++)
          this.cells[y * this.columns + x] = this.paint;
      this.draw();
    }
    release() {
      if (this.paint === undefined) return;
      this.paint = undefined;
      this.submit();
    }
    type(event) {
      const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      const [row, column] = this.place(this.at);
      if (event.key in moves) {
        const [down, right] = moves[event.key];
        const y = Math.max(0, Math.min(this.rows - 1, row + down)), x = Math.max(0, Math.min(this.columns - 1, column + right));
        const was = this.cells[this.at];
        this.at = y * this.columns + x;
        if (event.shiftKey) { this.paint = was; this.stroke(this.at); this.release(); }
      } else if (event.key === " " || event.key === "Enter") {
        this.paint = !this.cells[this.at];
        this.stroke(this.at);
        this.release();
      } else return;
      event.preventDefault();
      this.draw();
      this.announce();
    }
    fill(how) {
      this.cells = this.cells.map((chosen) => (how === "invert" ? !chosen : how === "all"));
      this.draw();
      this.submit();
    }
    submit() {
      this.box.dataset.value = runs(this.cells);
      choose(this.box.dataset.mask, this.box.dataset.value);
      this.announce();
    }
    announce() {
      const [row, column] = this.place(this.at), count = this.cells.filter(Boolean).length;
      const focused = document.activeElement === this.field && this.field.matches(":focus-visible");
      const here = focused ? `row ${row + 1}, column ${column + 1}${this.cells[this.at] ? " chosen" : ""}; ` : "";
      this.box.querySelector("[role=status]").textContent = `${here}${count} of ${this.cells.length}`;
    }
    draw() {
      const scale = devicePixelRatio || 1, width = this.field.clientWidth * scale, height = this.field.clientHeight * scale;
      if (!width) return;
      Object.assign(this.canvas, { width, height });
      const pen = this.canvas.getContext("2d"), w = width / this.columns, h = height / this.rows;
      const square = (index, inset = 0) => {
        const [row, column] = this.place(index);
        return [column * w + inset, row * h + inset, w - 2 * inset, h - 2 * inset];
      };
      this.cells.forEach((chosen, index) => {
        if (!chosen) return;
        pen.fillStyle = "#e69f00b0";
        pen.fillRect(...square(index));
      });
      pen.lineWidth = scale;
      pen.strokeStyle = this.columns > 24 ? "#ffffff30" : "#ffffff80";
      pen.beginPath();
      for (let column = 1; column < this.columns; column++) { pen.moveTo(Math.round(column * w) + 0.5, 0); pen.lineTo(Math.round(column * w) + 0.5, height); }
      for (let row = 1; row < this.rows; row++) { pen.moveTo(0, Math.round(row * h) + 0.5); pen.lineTo(width, Math.round(row * h) + 0.5); }
      pen.stroke();
      if (!this.field.matches(":focus-visible")) return;
      for (const [colour, thick] of [["#000000", 5], ["#ffffff", 2.5]]) {
        pen.strokeStyle = colour;
        pen.lineWidth = thick * scale;
        pen.strokeRect(...square(this.at, 3 * scale));
      }
    }
  }

  // ---- pictures in
  async function send(chooser, file) {
    const drop = chooser.querySelector(".drop"), problem = chooser.querySelector(".upload-problem");
    problem.hidden = true;
    drop.classList.add("busy");
    try {
      const response = await fetch(root() + "pictures", { method: "POST", headers: { "content-type": "application/octet-stream" }, body: file });
      const found = await response.json();
      if (found.error) throw new Error(found.error);
      choose(chooser.dataset.for, found.picture);
    } catch (error) {
      problem.textContent = error.message === "Failed to fetch" ? "The picture did not arrive: it may be too large, or the server is gone." : sentence(error.message);
      problem.hidden = false;
    }
    drop.classList.remove("busy");
  }
  const sentence = (words) => words[0].toUpperCase() + words.slice(1) + (words.endsWith(".") ? "" : ".");
  document.addEventListener("change", (event) => {
    if (!event.target.matches("[data-file-input]") || !event.target.files.length) return;
    send(event.target.closest(".chooser"), event.target.files[0]);
    event.target.value = "";
  });
  for (const kind of ["dragover", "dragleave", "drop"])
    document.addEventListener(kind, (event) => {
      const drop = event.target.closest && event.target.closest(".drop");
      if (kind !== "dragleave") event.preventDefault();
      if (!drop) return;
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length) send(drop.closest(".chooser"), event.dataTransfer.files[0]);
    });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
    const chooser = current(".chooser");
    if (file && chooser) send(chooser, file);
  });

  // ---- the camera
  let stream = null;
  function close(box) {
    if (stream) stream.getTracks().forEach((track) => track.stop());
    stream = null;
    box.hidden = true;
  }
  async function open(chooser) {
    const box = chooser.querySelector(".camera"), problem = chooser.querySelector(".upload-problem");
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: true });
      problem.hidden = true;
      box.hidden = false;
      box.querySelector("video").srcObject = stream;
      await box.querySelector("video").play();
    } catch (error) {
      problem.textContent = "The camera cannot be used: allow it for this page, or choose a picture.";
      problem.hidden = false;
    }
  }
  function shoot(chooser) {
    const video = chooser.querySelector("video"), canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => send(chooser, blob), "image/png");
    close(chooser.querySelector(".camera"));
  }

  document.addEventListener("click", (event) => {
    const at = event.target.closest("button, a");
    if (!at) return;
    const chooser = at.closest(".chooser");
    if (at.dataset.picture) choose(chooser.dataset.for, at.dataset.picture);
    if (at.dataset.layer) layer(at.closest(".model-view"), [...at.parentElement.children].indexOf(at));
    if (at.dataset.tabId) refresh(at.dataset.tabId);
    if (at.dataset.case) choose("case", at.getAttribute("aria-pressed") === "true" ? "" : at.dataset.case);
    if ("camera" in at.dataset) open(chooser);
    if ("shoot" in at.dataset) shoot(chooser);
    if ("close" in at.dataset) close(chooser.querySelector(".camera"));
    if ("theme" in at.dataset) {
      const name = document.body.classList.contains("dark") ? "light" : "dark";
      localStorage.setItem("theme", name);
      applyTheme(name);
    }
    if ("copy" in at.dataset) {
      const share = at.closest(".share"), link = share.querySelector("[data-link]").href;
      navigator.clipboard.writeText(link).then(() => (share.querySelector("[role=status]").textContent = "Copied."));
    }
  });
})();
