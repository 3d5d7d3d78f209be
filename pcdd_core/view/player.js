// The view of moving points: clouds in tiles, a slider over the frames, two curves.
// No dependencies, no network.
//
// One renderer for two places. In JupyterLab it is the front end of widget.PlayerWidget, which gets
// frames while a distillation runs (`render`, anywidget's entry). In the page of page.save_player it
// shows a recording that is in the page (`mount`). All that can be chosen here needs no kernel, so it
// works in a saved notebook, too. Only the buttons of the run (Start, Pause, ...) need one.
//
// Coordinates are in cells, in the order depth, height, width, as everywhere in pcdd. They arrive as
// whole numbers of 1 / steps of a cell, rounded down, so that their cell is exact.

const TRAIL = 8; // frames that a trail goes back
const SECONDS = 10; // that a whole recording plays, unless that is less than SLOWEST frames a second
const SLOWEST = 10;
// Redraws a second, at most, while points move. Live, the processor has other work. `calm` is for
// viewers who prefer reduced motion: points do not glide, and replay shows few frames.
const REDRAWS = { live: 30, replay: 30, calm: 2 };
const SPEEDS = [0.25, 0.5, 1, 2, 4];
const MOST_ZOOM = 16;
const REST = 600; // milliseconds without a change before the status line tells a screen reader
// From little to much: plasma without its lightest and darkest parts. Colour-blind viewers see its order.
const RAMP_ON_LIGHT = ["#0d0887", "#5402a3", "#8b0aa5", "#b83289", "#db5c68"];
const RAMP_ON_DARK = ["#b12a90", "#d6556d", "#ee7b51", "#fcae36", "#f0f921"];
// Eight directions: the colours of Okabe and Ito, which colour-blind viewers can tell apart. The last
// is black on light and light grey on dark.
const SECTORS = ["#d55e00", "#56b4e9", "#e69f00", "#0072b2", "#f0e442", "#cc79a7", "#009e73"];
const CONTRAST = 3; // of every point with its background, at least (WCAG 2.2, 1.4.11)
const CELLS = 0.12; // opacity of the projection
const MEAN = 0.3; // opacity of a cell that all real clouds of a class occupy
// Of the two runs, in curves: blue and vermilion of Okabe and Ito, and their like on dark. The second is dashed.
const RUNS = { light: ["#0072b2", "#b24a00"], dark: ["#56b4e9", "#ff9a4d"] };
const STROKES = ["─", "╌"];
const CIVIDIS = ["#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838"]; // low to high energy
const REACH = 12; // pixels around a click in which a point is found
const ARROW = 2; // cells: length of the arrow of a strong force
const LEVELS = 32; // colours of a ramp
const LAYERS = 8; // of depth, in which points of solid clouds are drawn

const STYLE = `
.pcdd-player { font: 13px/1.4 var(--jp-ui-font-family, system-ui, sans-serif); color: var(--jp-ui-font-color1, CanvasText);
  background: var(--jp-layout-color0, Canvas); padding: 4px 0; max-width: 1100px; }
.pcdd-player .row { display: flex; flex-wrap: wrap; align-items: center; gap: 6px 16px; margin: 4px 2px; }
.pcdd-player label { display: inline-flex; align-items: center; gap: 5px; white-space: nowrap; }
.pcdd-player select, .pcdd-player button { font: inherit; color: inherit; background: var(--jp-layout-color1, Canvas);
  border: 1px solid color-mix(in srgb, currentColor 55%, transparent); border-radius: 3px; padding: 2px 8px; }
.pcdd-player button { min-width: 2.2em; }
.pcdd-player button.wide { min-width: 6.5em; }
.pcdd-player button:disabled { opacity: 0.5; }
.pcdd-player option { color: var(--jp-ui-font-color1, CanvasText); background: var(--jp-layout-color1, Canvas); }
.pcdd-player :focus-visible { outline: 2px solid var(--jp-brand-color1, Highlight); outline-offset: 1px; }
.pcdd-player input[type=range] { flex: 1; min-width: 120px; accent-color: var(--jp-brand-color1, AccentColor); }
.pcdd-player .legend { display: inline-flex; align-items: center; gap: 6px; margin-left: auto; }
.pcdd-player .ramp { width: 90px; height: 10px; border-radius: 2px; }
.pcdd-player .moment { min-width: 11em; text-align: right; font-variant-numeric: tabular-nums; }
.pcdd-player canvas { display: block; width: 100%; }
.pcdd-player canvas.clouds { touch-action: pan-y; }
.pcdd-player canvas.movable { cursor: grab; touch-action: none; }
.pcdd-player .group { display: inline-flex; flex-wrap: wrap; gap: 4px; }
.pcdd-player .picked { font-variant-numeric: tabular-nums; }
.pcdd-player .said { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.pcdd-lab .pcdd-player { max-width: none; }
.pcdd-player [hidden] { display: none; }
.pcdd-player:fullscreen { max-width: none; overflow: auto; padding: 12px 24px; font-size: 16px; }
`;

/** anywidget's entry: the view of one widget. `recording` holds a whole recording, custom messages bring frames. */
function render({ model, el }) {
  const player = mount(el, (question) => model.send(question));
  let before = Promise.resolve(); // decoding takes a moment, in which frames must not overtake it
  const inTurn = (act) => (before = before.then(act).catch(console.error));
  const load = () => {
    const bytes = model.get("recording");
    if (bytes.byteLength) inTurn(async () => player.show(await decode(bytes)));
  };
  const receive = (message, buffers) => inTurn(() => player[message.kind](message, buffers));
  const run = () => player.run(model.get("status"), model.get("orders"));
  const score = () => player.score(model.get("scores"));
  const heard = { recording: load, status: run, orders: run, scores: score };
  Object.entries(heard).forEach(([name, act]) => model.on(`change:${name}`, act));
  model.on("msg:custom", receive);
  run();
  score();
  load();
  // A page that is loaded again in mid-run has an old recording. Without a kernel there is no answer.
  if (model.get("orders").length) model.send({ ask: "recording" });
  return () => {
    Object.entries(heard).forEach(([name, act]) => model.off(`change:${name}`, act));
    model.off("msg:custom", receive);
    player.remove();
  };
}
export default { render };

/** Bytes of page.encode in Python -> { header..., frames: [{ update, places, gradients }] }. */
export async function decode(bytes) {
  const unzipped = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(unzipped).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  const take = (kind, count) => {
    const array = new kind(buffer.slice(at, at + count * kind.BYTES_PER_ELEMENT));
    at += count * kind.BYTES_PER_ELEMENT;
    return array;
  };
  const points = header.offsets.at(-1);
  const size = 3 * points;
  const count = header.updates.length;
  const low = take(Uint8Array, count * size);
  const high = take(Uint8Array, count * size);
  const gradients = header.has_gradients ? take(Uint8Array, count * points) : null;
  const curves = () => header.runs.map(() => Array.from(take(Float32Array, header.curve_length)));
  const [loss, mean_gradient] = [curves(), curves()]; // of each run
  // Each number is the difference to the frame before, modulo its range; low bytes and high bytes lie apart.
  let places = new Uint16Array(size);
  let levels = new Uint8Array(points);
  const frames = header.updates.map((update, index) => {
    places = places.map((value, i) => value + low[index * size + i] + 256 * high[index * size + i]);
    if (gradients) levels = levels.map((value, i) => value + gradients[index * points + i]);
    return { update, places, gradients: gradients && levels };
  });
  return { ...header, points, frames, loss, mean_gradient };
}

/**
 * Build the view in `root`; returns what changes it: show(recording), run(status, orders), and so on.
 * send: takes a message for the kernel; without it there is none
 */
export function mount(root, send = null) {
  root.classList.add("pcdd-player");
  const ui = controls(root);
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const straight = { yaw: 0.6, pitch: 0.45, zoom: 1, x: 0, y: 0 }; // x and y: shift in widths of a tile
  const look = { ...straight };
  let recording = null;
  let position = 0; // of the frame shown; between whole numbers points are on their way
  let goal = 0; // where points glide to
  let speed = 0; // frames a second
  let playing = false;
  let last = 0; // milliseconds of the last redraw
  let arrived = 0; // and of the last frame from the kernel
  let waiting = null; // animation frame asked for
  let soon = null; // and the timer that will ask for one
  let telling = null; // timer of the status line
  // What the kernel told: { forces } of the points of an update, { map } of the energy, { means } of real clouds.
  const extra = { picked: -1, forces: null, map: null, means: null, scores: {} };

  const redraw = () => {
    waiting ??= requestAnimationFrame(frame);
  };
  const redrawSoon = () => {
    const redraws = calm.matches ? REDRAWS.calm : playing ? REDRAWS.replay : REDRAWS.live;
    soon ??= setTimeout(
      () => {
        soon = null;
        redraw();
      },
      1000 / redraws - 8, // less half of a screen's frame
    );
  };

  function frame(now) {
    waiting = null;
    if (!recording) return;
    // A frame's time is that of its beginning: on a busy machine it may lie before the click that asked for it.
    const seconds = Math.min(Math.max(now - last, 0) / 1000, calm.matches ? 1 : 0.2);
    last = Math.max(now, last);
    if (position < goal) position = Math.min(goal, position + seconds * speed);
    if (position === goal && playing) setPlaying(false);
    ui.slider.value = Math.round(position);
    draw();
    if (position !== goal) redrawSoon();
  }

  function jump(to) {
    if (playing) setPlaying(false);
    position = goal = Math.min(Math.max(to, 0), recording.frames.length - 1);
    redraw();
  }

  function setPlaying(on) {
    playing = on;
    const end = recording.frames.length - 1;
    if (on && position >= end) position = 0;
    goal = on ? end : Math.round(position);
    if (!on) position = goal;
    pace();
    ui.play.textContent = on ? "❚❚ Hold" : "▶ Replay";
    ui.play.setAttribute("aria-label", on ? "Hold" : "Replay");
    last = performance.now();
    redraw();
  }

  function pace() {
    if (playing) speed = Math.max(SLOWEST, goal / SECONDS) * Number(ui.speed.value);
  }

  function fit() {
    const end = recording.frames.length - 1;
    ui.slider.max = end;
    for (const control of [ui.slider, ui.play, ui.back, ui.forth, ui.speed]) control.disabled = end === 0;
    goal = Math.min(goal, end);
    position = Math.min(position, end);
  }

  /** Tell a screen reader, once nothing has changed for a while. Each frame would be too much. */
  function tell(text) {
    clearTimeout(telling);
    telling = setTimeout(() => (ui.said.textContent = text()), REST);
  }

  /** Take over a whole recording; what is shown stays the same moment, or the end if that was shown. */
  function show(given) {
    const before = recording && recording.frames[Math.round(position)];
    const atEnd = !recording || Math.round(position) >= recording.frames.length - 1;
    const same = before && recording.offsets.join() === given.offsets.join();
    recording = given;
    if (!same || recording.frames.length === 1) forget();
    if (!same) extra.means = null;
    if (playing) setPlaying(false);
    const kept = same && !atEnd ? recording.frames.findIndex((one) => one.update >= before.update) : -1;
    position = goal = kept >= 0 ? kept : recording.frames.length - 1;
    fit();
    choices(ui, recording);
    redraw();
  }

  const whole = ({ buffer, byteOffset, byteLength }, kind) =>
    new kind(buffer.slice(byteOffset, byteOffset + byteLength));

  /** Another scatter: what belonged to a point or to a moment is over. */
  function forget() {
    Object.assign(extra, { picked: -1, forces: null, map: null });
  }

  /** A frame from the kernel: { update, stride, first, loss, mean_gradient, final }, and its buffers. */
  function add(message, buffers) {
    if (!recording) return;
    const following = !playing && goal >= recording.frames.length - 1;
    const { update, stride, first, final } = message;
    const frames = recording.frames;
    const shown = frames[Math.round(position)].update;
    // The kernel keeps every stride-th frame, and the last: the same here.
    recording.frames = frames.filter((one) => one.update % stride === 0 && one.update < update);
    recording.frames.push({ update, places: whole(buffers[0], Uint16Array), gradients: whole(buffers[1], Uint8Array) });
    recording.has_gradients = true;
    for (const name of ["loss", "mean_gradient"]) {
      recording[name].forEach((curve, run) => {
        curve.length = Math.min(curve.length, first);
        while (curve.length < first) curve.push(NaN);
        curve.push(...message[name][run]);
      });
    }
    if (buffers[2]) extra.forces = { update, of: "the last update", values: whole(buffers[2], Float32Array) };
    const now = performance.now();
    const end = recording.frames.length - 1;
    if (following) {
      // Points glide to where they are now in the time that the last iteration took, so they move evenly.
      position = Math.max(end - 1, 0);
      goal = end;
      speed = 1000 / Math.min(Math.max(now - arrived, 30), 1000);
      const still = final || end === 0 || calm.matches || now - arrived < 1000 / REDRAWS.live;
      if (still) position = end; // no time to glide
      last = now;
    } else {
      const kept = recording.frames.findIndex((one) => one.update >= shown);
      if (!playing) position = goal = kept;
      else if (stride > 1 && recording.frames.length < frames.length) position = goal = kept; // thinned while playing
      else goal = end;
    }
    arrived = now;
    fit();
    choices(ui, recording);
    if (calm.matches && !final) redrawSoon();
    else redraw();
  }

  /** Forces on the points after an update: (3, points), energy per cell, of the next update. */
  function forces({ update }, buffers) {
    extra.forces = { update, of: "the next update", values: whole(buffers[0], Float32Array) };
    redraw();
  }

  /** The energy with one point moved: (side, side) samples along height and width. */
  function map(message, buffers) {
    extra.map = { ...message, values: whole(buffers[0], Float32Array) };
    redraw();
    tell(() => ui.picked.textContent);
  }

  /** How many real clouds of each class occupy each cell: 0 to 255. */
  function means(_message, buffers) {
    extra.means = whole(buffers[0], Uint8Array);
    redraw();
  }

  /** Accuracies: { runs: [[update, percent], ...] of each run, baselines: { name: percent }, note }. */
  function score(given) {
    extra.scores = given;
    ui.score.parentElement.hidden = !given.runs;
    redraw();
  }

  /** State and buttons of a run. Without orders there is no run. */
  function run(status, orders) {
    ui.run.hidden = ui.beneath.parentElement.hidden = ui.arrows.parentElement.hidden = ui.energy.hidden = !orders.length;
    const can = (button) => orders.some(([name, , enabled]) => name === button && enabled);
    [ui.resting, ui.running] = [can("Step"), can("Pause")];
    if (ui.buttons.childElementCount !== orders.length) {
      ui.buttons.replaceChildren();
      for (const [name] of orders)
        ui.make(ui.buttons, "button", { type: "button", class: "wide" }, name).onclick = () =>
          send({ order: name });
    }
    orders.forEach(([, tooltip, enabled], i) => {
      ui.buttons.children[i].title = tooltip;
      ui.buttons.children[i].disabled = !enabled;
    });
    const state = (text) => text.split(",")[0];
    if (state(status) !== state(ui.status.textContent)) tell(() => ui.status.textContent);
    ui.status.textContent = status;
    redraw();
  }

  let wanted = false; // the kernel sends forces
  function asks() {
    const want = ui.arrows.checked || extra.picked >= 0;
    if (want !== wanted && send) send({ ask: "forces", on: (wanted = want) });
  }

  /** Choose a point, or -1 for none. */
  function pick(point) {
    extra.picked = point;
    extra.map = null;
    asks();
    redraw();
    tell(() => ui.picked.textContent || "no point selected");
  }

  /** The next or the previous point of the clouds that are shown. */
  function pickNext(by) {
    const points = shownClouds(ui, recording).flatMap(({ cloud }) => range(...ends(recording, cloud)));
    const at = points.indexOf(extra.picked);
    pick(points.at((at < 0 ? (by > 0 ? 0 : -1) : at + by) % points.length));
  }

  function draw() {
    const moving = position !== goal;
    const at = calm.matches ? Math.round(position) : position;
    const shown = recording.frames[Math.round(position)];
    const moment = `update ${shown.update} of ${recording.iterations}`;
    ui.moment.textContent = moment;
    ui.slider.setAttribute("aria-valuetext", moment);
    const changed = root.dataset.update !== String(shown.update);
    root.dataset.update = shown.update;
    root.dataset.frames = recording.frames.length;
    const background = channels(getComputedStyle(root).backgroundColor);
    const trails = ui.trails.checked && !(moving && calm.matches);
    ui.difference.parentElement.hidden = recording.runs.length < 2;
    const newest = Math.round(position) === recording.frames.length - 1;
    const now = {
      picked: extra.picked,
      means: ui.beneath.checked && extra.means,
      forces: newest && extra.forces?.update === shown.update && extra.forces,
      arrows: ui.arrows.checked,
      map: newest && extra.map?.update === shown.update && extra.map?.point === extra.picked && extra.map,
    };
    const shade = drawClouds(ui, recording, at, look, background, trails, now);
    ui.picked.textContent = aboutPoint(recording, shown, now);
    ui.energy.disabled = !(ui.resting && newest && extra.picked >= 0);
    ui.clouds.setAttribute("aria-label", description(ui, recording, shown, look, shade));
    ui.zoomOut.disabled = look.zoom === 1;
    ui.zoomIn.disabled = look.zoom === MOST_ZOOM;
    ui.reset.disabled = Object.keys(look).every((name) => look[name] === straight[name]);
    ui.clouds.classList.toggle("movable", recording.grid[0] > 1 || look.zoom > 1);
    const mark = shown.update - 1;
    const dark = luminance(background) < 0.18;
    const lines = (curves) => curves.map((values) => ({ values }));
    const chart = { iterations: recording.iterations, mark, dark, runs: recording.runs };
    drawCurves(ui.loss, { ...chart, name: "matching loss, all classes", series: lines(recording.loss) });
    drawCurves(ui.gradient, { ...chart, name: "mean |gradient|, per cell", series: lines(recording.mean_gradient) });
    if (extra.scores.runs) drawScores(ui.score, chart, extra.scores);
    if (changed && !ui.running) tell(() => moment);
  }

  ui.play.onclick = () => setPlaying(!playing);
  ui.speed.onchange = pace;
  ui.slider.oninput = () => jump(Number(ui.slider.value));
  ui.back.onclick = () => jump(Math.ceil(position) - 1);
  ui.forth.onclick = () => jump(Math.floor(position) + 1);
  ui.energy.onclick = () => send({ ask: "map", point: extra.picked });
  ui.arrows.addEventListener("change", asks);
  ui.beneath.addEventListener("change", () => extra.means || send({ ask: "means" }));
  for (const control of [ui.which, ui.colour, ui.trails, ui.cells, ui.beneath, ui.arrows, ui.difference]) {
    control.onchange = () => {
      redraw();
      tell(() => ui.clouds.getAttribute("aria-label"));
    };
  }
  const seen = () => {
    redraw();
    tell(() => `zoom ${look.zoom.toPrecision(2)}`);
  };
  movable(ui, look, () => recording && recording.grid[0] > 1, seen);
  selectable(ui, () => recording && pointsOnScreen(ui, recording, position), pick, pickNext);
  ui.zoomIn.onclick = () => zoom(look, 1.5, 0, 0, seen);
  ui.zoomOut.onclick = () => zoom(look, 1 / 1.5, 0, 0, seen);
  ui.reset.onclick = () => {
    Object.assign(look, straight);
    seen();
  };
  ui.full.onclick = () => {
    if (root.matches(":fullscreen")) document.exitFullscreen();
    else root.requestFullscreen();
  };
  let guarded = null; // observer of the lab's controls, which are there once the view is on the page
  const resized = new ResizeObserver(() => {
    guarded ??= guard(root.closest(".pcdd-lab"));
    redraw();
  });
  resized.observe(root);
  calm.addEventListener("change", redraw);
  // The theme: JupyterLab's is an attribute of the body, a browser's is a media query.
  const themed = new MutationObserver(redraw);
  for (const page of [document.body, document.documentElement])
    themed.observe(page, { attributes: true, attributeFilter: ["data-jp-theme-name", "class", "style"] });
  const night = matchMedia("(prefers-color-scheme: dark)");
  night.addEventListener("change", redraw);
  const remove = () => {
    resized.disconnect();
    themed.disconnect();
    guarded?.disconnect();
    night.removeEventListener("change", redraw);
    calm.removeEventListener("change", redraw);
    clearTimeout(soon);
    clearTimeout(telling);
    if (waiting) cancelAnimationFrame(waiting);
  };
  /** Copy a text. The browser may refuse; the text is in the panel, too. */
  const copy = ({ text }) => navigator.clipboard?.writeText(text).catch(() => {});

  return { show, add, run, forces, map, means, score, copy, remove };
}

/** Keep the keys of ipywidgets' controls in a lab from JupyterLab's shortcuts, and name its sliders. */
function guard(lab) {
  if (!lab) return null;
  const protect = () => {
    lab.dataset.lmSuppressShortcuts = "true";
    lab.querySelector(".pcdd-message")?.setAttribute("aria-live", "polite");
    for (const control of lab.querySelectorAll("input, select, textarea, button, [tabindex]"))
      control.dataset.lmSuppressShortcuts = "true";
    for (const handle of lab.querySelectorAll("[role=slider]"))
      handle.setAttribute("aria-label", handle.closest(".widget-inline-hbox")?.querySelector("label")?.textContent ?? "");
  };
  const observer = new MutationObserver(protect);
  observer.observe(lab, { childList: true, subtree: true });
  protect();
  return observer;
}

// --- controls ------------------------------------------------------------------------------------------------------

function controls(root) {
  const make = (parent, tag, attributes = {}, text = "") => {
    const element = document.createElement(tag);
    Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
    // Some of JupyterLab's shortcuts match the focused element, so every control has its attribute.
    element.dataset.lmSuppressShortcuts = "true";
    element.textContent = text; // never as HTML: class names come from data
    parent.append(element);
    return element;
  };
  const labelled = (parent, text, tag, attributes = {}) => {
    const label = make(parent, "label", {}, tag === "select" ? text : "");
    const control = make(label, tag, attributes);
    if (tag !== "select") label.append(text);
    return control;
  };
  root.replaceChildren();
  root.dataset.lmSuppressShortcuts = "true";
  make(root, "style", {}, STYLE);
  const run = make(root, "div", { class: "row", hidden: "" });
  const buttons = make(run, "span", { class: "group" });
  const status = make(run, "span", { class: "status" });
  const top = make(root, "div", { class: "row" });
  const which = labelled(top, "Class", "select");
  const colour = labelled(top, "Colour", "select");
  make(colour, "option", { value: "displacement" }, "displacement");
  make(colour, "option", { value: "gradient" }, "gradient");
  make(colour, "option", { value: "identity" }, "identity");
  const trails = labelled(top, "Trails", "input", { type: "checkbox" });
  const cells = labelled(top, "Projection", "input", { type: "checkbox", title: "occupied cells: what is scored" });
  const means = "the real class mean beneath: how many real clouds occupy a cell";
  const beneath = labelled(top, "Real mean", "input", { type: "checkbox", title: means });
  const arrows = labelled(top, "Forces", "input", { type: "checkbox", title: "minus the gradient of the matching loss at each point" });
  const pairs = "how far each point of the second run is from the same point of the first";
  const difference = labelled(top, "Difference", "input", { type: "checkbox", title: pairs });
  const legend = make(top, "span", { class: "legend" });
  const low = make(legend, "span");
  const ramp = make(legend, "span", { class: "ramp" });
  const high = make(legend, "span");
  const clouds = make(root, "canvas", { class: "clouds", role: "img", tabindex: 0, "aria-label": "clouds" });
  const button = (parent, text, title) => make(parent, "button", { type: "button", title, "aria-label": title }, text);
  const middle = make(root, "div", { class: "row" });
  const views = make(middle, "span", { class: "group" });
  const zoomOut = button(views, "−", "Zoom out");
  const zoomIn = button(views, "+", "Zoom in");
  const reset = button(views, "Reset", "Reset the view");
  const full = button(views, "Full screen", "Full screen");
  full.hidden = !document.fullscreenEnabled;
  const around = "the matching loss with the selected point elsewhere, all others unmoved; while the run rests";
  const energy = make(middle, "button", { type: "button", title: around }, "Energy map");
  const picked = make(middle, "span", { class: "picked" });
  const note = make(middle, "span", { class: "note" });
  const bottom = make(root, "div", { class: "row" });
  const play = make(bottom, "button", { type: "button", class: "wide", "aria-label": "Replay" }, "▶ Replay");
  const frames = make(bottom, "span", { class: "group" });
  const back = button(frames, "‹", "One frame back");
  const forth = button(frames, "›", "One frame forward");
  const speed = labelled(bottom, "Speed", "select");
  SPEEDS.forEach((times) => make(speed, "option", { value: times }, `${times}×`));
  speed.value = "1";
  const slider = make(bottom, "input", { type: "range", min: 0, max: 0, step: 1, "aria-label": "moment of the recording" });
  const moment = make(bottom, "span", { class: "moment" });
  const curves = make(root, "div", { class: "row" });
  const half = { style: "flex: 1 1 300px; min-width: 0" };
  const loss = make(make(curves, "div", half), "canvas", { class: "loss", role: "img" });
  const gradient = make(make(curves, "div", half), "canvas", { class: "gradient", role: "img" });
  const score = make(make(curves, "div", { ...half, hidden: "" }), "canvas", { class: "score", role: "img" });
  const said = make(root, "div", { class: "said", role: "status", "aria-live": "polite" });
  return {
    root, make, run, buttons, status, which, colour, trails, cells, legend, low, ramp, high, clouds,
    beneath, arrows, difference, energy, picked, score, zoomOut, zoomIn, reset, full, note, play, back, forth, speed, slider, moment, loss, gradient, said,
  };
}

/** Fill the menus from what the recording has. */
function choices(ui, recording) {
  const names = JSON.stringify(recording.class_names);
  if (ui.which.dataset.names !== names) {
    ui.which.dataset.names = names;
    ui.which.replaceChildren();
    ui.make(ui.which, "option", { value: "" }, "all");
    const labels = [...new Set(recording.labels)].sort((a, b) => a - b);
    labels.forEach((label) => ui.make(ui.which, "option", { value: label }, recording.class_names[label]));
  }
  const option = ui.colour.querySelector("[value=gradient]");
  option.disabled = !recording.has_gradients;
  option.textContent = recording.has_gradients ? "gradient" : "gradient (not recorded)";
  if (!recording.has_gradients && ui.colour.value === "gradient") ui.colour.value = "displacement";
  const solid = recording.grid[0] > 1;
  ui.note.textContent = solid
    ? "Drag or arrow keys: turn. With Shift: move. Ctrl + wheel, pinch, + and −: zoom. Click, N and P: select a point."
    : "Ctrl + wheel, pinch, + and −: zoom. Then drag or arrow keys: move. Click, N and P: select a point.";
}

/** Zoom by a factor around the point (x, y) of each tile, in widths of a tile from its middle. */
function zoom(look, factor, x, y, changed) {
  const before = look.zoom;
  look.zoom = Math.min(Math.max(before * factor, 1), MOST_ZOOM);
  if (Math.abs(look.zoom - 1) < 0.01) look.zoom = 1;
  shift(look, (x - look.x) * (1 - look.zoom / before), (y - look.y) * (1 - look.zoom / before), changed);
}

/** Move what the tiles show, by widths of a tile. They stay full. */
function shift(look, x, y, changed) {
  const most = (look.zoom - 1) / 2;
  look.x = Math.min(Math.max(look.x + x, -most), most);
  look.y = Math.min(Math.max(look.y + y, -most), most);
  changed();
}

/** Zoom, move and turn by pointer, wheel and keyboard. A wheel without Ctrl scrolls the page. */
function movable(ui, look, solid, changed) {
  const canvas = ui.clouds;
  const pointers = new Map();
  const turn = (yaw, pitch) => {
    look.yaw += yaw;
    look.pitch = Math.min(Math.max(look.pitch + pitch, -Math.PI / 2), Math.PI / 2);
    changed();
  };
  /** Where a pointer is: widths of a tile from the middle of its tile. */
  const within = ({ clientX, clientY }) => {
    const { left, top } = canvas.getBoundingClientRect();
    const { tile, tall, boxes } = ui.tiles;
    const from = boxes.map((box) => [clientX - left - box.left - tile / 2, clientY - top - box.top - tall / 2]);
    return from.reduce((a, b) => (Math.hypot(...b) < Math.hypot(...a) ? b : a)).map((pixels) => pixels / tile);
  };
  canvas.onpointerdown = (event) => {
    if (event.button !== 0) return;
    pointers.set(event.pointerId, event);
    canvas.setPointerCapture(event.pointerId);
  };
  canvas.onpointermove = (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const others = [...pointers.values()].filter((one) => one.pointerId !== event.pointerId);
    pointers.set(event.pointerId, event);
    const [x, y] = [event.clientX - before.clientX, event.clientY - before.clientY];
    if (others.length) {
      const away = (one) => Math.hypot(one.clientX - others[0].clientX, one.clientY - others[0].clientY);
      zoom(look, away(event) / Math.max(away(before), 1), ...within(others[0]), changed);
    } else if (solid() && !event.shiftKey) turn(x / 120, y / 120);
    else shift(look, x / ui.tiles.tile, y / ui.tiles.tile, changed);
  };
  canvas.onpointerup = canvas.onpointercancel = (event) => pointers.delete(event.pointerId);
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault(); // the browser would zoom the page
      const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 30 : 1;
      if (ui.tiles) zoom(look, Math.exp(-0.005 * lines * event.deltaY), ...within(event), changed);
    },
    { passive: false },
  );
  canvas.onkeydown = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const factor = { "+": 1.5, "=": 1.5, "-": 1 / 1.5 }[event.key];
    if (!arrow && !factor) return;
    if (factor) zoom(look, factor, 0, 0, changed);
    else if (solid() && !event.shiftKey) turn(0.1 * arrow[0], 0.1 * arrow[1]);
    else shift(look, 0.1 * arrow[0], 0.1 * arrow[1], changed);
    event.preventDefault();
  };
}

/** Select a point: click it, or N and P for the next and the previous one, Escape for none. */
function selectable(ui, points, pick, pickNext) {
  let down = null;
  ui.clouds.addEventListener("pointerdown", (event) => (down = [event.clientX, event.clientY]));
  ui.clouds.addEventListener("click", (event) => {
    const moved = down && Math.hypot(event.clientX - down[0], event.clientY - down[1]) > 4;
    if (moved || !points()) return;
    const { left, top } = ui.clouds.getBoundingClientRect();
    let [best, nearest] = [-1, REACH];
    for (const [point, x, y] of points()) {
      const away = Math.hypot(event.clientX - left - x, event.clientY - top - y);
      if (away < nearest) [best, nearest] = [point, away];
    }
    pick(best);
  });
  ui.clouds.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !points()) return;
    const key = event.key.toLowerCase();
    if (key === "n" || key === "p") pickNext(key === "n" ? 1 : -1);
    else if (key === "escape") pick(-1);
    else return;
    event.preventDefault();
  });
}

/** Where each point is on the canvas: [point, x, y]. */
function pointsOnScreen(ui, recording, position) {
  const frame = Math.min(Math.round(position), recording.frames.length - 1);
  const found = [];
  for (const { cloud, sight, left, top } of ui.tiles?.boxes ?? []) {
    eachPlace(recording, frame, frame, 0, ends(recording, cloud), (i, d, h, w) => {
      const [x, y] = [seenX(sight, d, h, w), seenY(sight, d, h, w)];
      const inside = x >= left && x <= left + ui.tiles.tile && y >= top && y <= top + ui.tiles.tall;
      if (inside) found.push([i, x, y]);
    });
  }
  return found;
}

/** What is known of the selected point, in words. */
function aboutPoint(recording, shown, now) {
  const { picked } = now;
  if (picked < 0) return "";
  const { points, steps } = recording;
  const cloud = recording.offsets.findLastIndex((offset) => offset <= picked);
  const run = recording.runs[runOf(recording, cloud)];
  const axes = recording.grid[0] > 1 ? [0, 1, 2] : [1, 2];
  const at = (frame) => axes.map((axis) => (frame.places[axis * points + picked] + 0.5) / steps);
  const [here, start] = [at(shown), at(recording.frames[0])];
  const way = Math.hypot(...here.map((value, i) => value - start[i]));
  const name = `Point ${picked - recording.offsets[cloud] + 1} of ${recording.class_names[recording.labels[cloud]]}`;
  let text = `${name}${run && `, ${run}`}: at ${here.map((value) => value.toFixed(1)).join(", ")}, ${way.toFixed(1)} cells from its start`;
  if (now.forces) {
    const size = Math.hypot(...axes.map((axis) => now.forces.values[axis * points + picked]));
    text += `; force of ${now.forces.of} ${readable(size)} per cell`;
  }
  if (now.map) {
    const { side, reach, place } = now.map;
    const offset = (i) => [Math.floor(i / side), i % side].map((at) => reach * ((2 * at) / (side - 1) - 1));
    // A point stays in the grid, so energies outside of it do not count.
    const holds = (i) => offset(i).every((by, axis) => place[axis + 1] + by >= 0 && place[axis + 1] + by < recording.grid[axis + 1]);
    const values = Array.from(now.map.values, (value, i) => (holds(i) ? value : Infinity));
    const off = offset(values.indexOf(Math.min(...values)));
    const words = [off[0] < 0 ? "up" : "down", off[1] < 0 ? "left" : "right"];
    text += `; lowest energy ${Math.abs(off[0]).toFixed(1)} cells ${words[0]}, ${Math.abs(off[1]).toFixed(1)} ${words[1]}`;
  }
  return `${text}.`;
}

/** What the clouds show, in words. */
function description(ui, recording, shown, look, shade) {
  const names = shownClouds(ui, recording).map(({ label }) => recording.class_names[label]);
  const different = [...new Set(names)];
  const listed = different.length > 12 ? `${different.length} classes` : different.join(", ");
  const runs = recording.runs.length > 1 ? `Two runs side by side, ${recording.runs.join(" and ")}. ` : "";
  const what = `${runs}${names.length} ${names.length === 1 ? "cloud" : "clouds"} of points: ${listed}`;
  const view = look.zoom > 1 ? ` Zoom ${look.zoom.toPrecision(2)}.` : "";
  const degrees = (angle) => Math.round((angle * 180) / Math.PI);
  const turned = recording.grid[0] > 1 ? ` Turned by ${degrees(look.yaw)}°, tilted by ${degrees(look.pitch)}°.` : "";
  return `${what}. After update ${shown.update} of ${recording.iterations}. ${shade}.${view}${turned}`;
}

// --- drawing -------------------------------------------------------------------------------------------------------

/** A canvas as wide as its place, cleared, in CSS pixels; returns [context, width]. */
function prepare(canvas, height, width = canvas.parentElement.clientWidth) {
  const sharp = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * sharp) || canvas.height !== Math.round(height * sharp)) {
    canvas.width = Math.round(width * sharp);
    canvas.height = Math.round(height * sharp);
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(sharp, 0, 0, sharp, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = getComputedStyle(canvas).font;
  return [context, width];
}

const range = (first, past) => Array.from({ length: past - first }, (_, i) => first + i);
const ends = (recording, cloud) => [recording.offsets[cloud], recording.offsets[cloud + 1]];
/** The run of a cloud: the clouds of the second run follow those of the first. */
const runOf = (recording, cloud) => Math.floor((cloud * recording.runs.length) / recording.labels.length);

function shownClouds(ui, recording) {
  const all = recording.labels.map((label, cloud) => ({ label, cloud }));
  return ui.which.value === "" ? all : all.filter((one) => one.label === Number(ui.which.value));
}

/** Where the tiles lie: their size, and for each cloud its left and top; runs side by side, or on narrow screens below. */
function layout(ui, recording, room) {
  const shown = shownClouds(ui, recording);
  const runs = recording.runs.length;
  const count = shown.length / runs;
  const [deep, high, wide] = recording.grid;
  const solid = deep > 1;
  const across = solid ? Math.hypot(deep, high, wide) : wide;
  const ratio = solid ? 1 : high / wide;
  const [title, gap] = [18, 8];
  const heading = runs > 1 ? 20 : 0;
  const beside = runs > 1 && room >= 560 ? runs : 1; // panes in a row
  const space = room / beside;
  let columns = Math.min(count, space < 560 ? 3 : count > 20 ? 10 : 5);
  if (beside > 1 && count > 3) columns = Math.min(count, count > 20 ? 10 : 5);
  let most = count === 1 ? 460 : solid && count < 4 ? 360 : 300;
  if (ui.root.matches(":fullscreen")) [columns, most] = largest(ui, count, space, ratio, title + gap);
  const tile = Math.min((space - 4) / columns - gap, most);
  const tall = tile * ratio;
  const rows = Math.ceil(count / columns);
  const pane = rows * (tall + title + gap) + heading;
  const indent = (space - columns * (tile + gap)) / 2;
  const boxes = shown.map(({ label, cloud }, index) => {
    const run = Math.floor(index / count);
    const place = index % count;
    const left = (run % beside) * space + indent + (place % columns) * (tile + gap) + gap / 2;
    const top = Math.floor(run / beside) * pane + heading + Math.floor(place / columns) * (tall + title + gap) + title;
    return { label, cloud, run, left, top };
  });
  const headings = heading ? recording.runs.map((name, run) => [`${STROKES[run]} ${name}`, ((run % beside) + 0.5) * space, Math.floor(run / beside) * pane + 14]) : [];
  return { tile, tall, across, boxes, headings, height: (runs / beside) * pane };
}

/** Draw all tiles; returns what the colours say, in words. */
function drawClouds(ui, recording, position, look, background, trails, now) {
  const solid = recording.grid[0] > 1;
  const room = ui.clouds.parentElement.clientWidth - 2 * parseFloat(getComputedStyle(ui.root).paddingLeft);
  if (room <= 0) return ""; // not on screen
  const { tile, tall, across, boxes, headings, height } = (ui.tiles = layout(ui, recording, room));
  const [context] = prepare(ui.clouds, height, room);
  const style = getComputedStyle(ui.clouds);
  const text = channels(style.color);
  const scale = (look.zoom * tile) / across;
  const shading = 1 - (1 - (ui.cells.checked ? CELLS : 0)) * (1 - (now.means ? MEAN : 0));
  const ground = shading ? mixed(background, text, shading) : background;

  const from = Math.min(Math.floor(position), recording.frames.length - 1);
  const to = Math.min(from + 1, recording.frames.length - 1);
  const part = position - from;
  const { palette, buckets, shade } = colours(ui, recording, from, to, part, ground);
  const nearest = recording.frames[Math.round(position)];
  const partner = partnerOf(recording, now.picked);
  const strong = now.forces && strongForces(now.forces.values, recording);
  context.fillStyle = style.color;
  context.textAlign = "center";
  context.textBaseline = "alphabetic";
  const inks = RUNS[luminance(background) < 0.18 ? "dark" : "light"];
  headings.forEach(([name, x, y], run) => {
    context.fillStyle = legible(inks[run], background);
    context.fillText(shorten(context, name, room / 2 - 8), x, y);
  });
  for (const box of boxes) {
    const { label, cloud, left, top } = box;
    context.fillStyle = style.color;
    context.fillText(shorten(context, recording.class_names[label], tile), left + tile / 2, top - 5);
    const middle = [left + tile / 2 + look.x * tile, top + tall / 2 + look.y * tile];
    const sight = (box.sight = solid ? turned(look, recording.grid, ...middle, scale) : flat(recording.grid, ...middle, scale));
    const own = ends(recording, cloud);
    const holds = (point) => point >= own[0] && point < own[1];
    const chosen = [now.picked, partner].find(holds) ?? -1;
    context.save();
    context.strokeStyle = style.color;
    context.globalAlpha = 0.3;
    context.strokeRect(left + 0.5, top + 0.5, tile - 1, tall - 1);
    context.beginPath();
    context.rect(left, top, tile, tall);
    context.clip();
    if (solid) drawBox(context, sight, recording.grid);
    if (now.means) drawMean(context, sight, recording, now.means, label, scale, style.color);
    if (ui.cells.checked) drawCells(context, sight, recording, nearest, own, scale, style.color, solid);
    const mapped = now.map && holds(now.picked);
    if (mapped) drawMap(context, sight, now.map);
    if (trails) drawTrails(context, sight, recording, from, to, part, own, style.color);
    if (ui.difference.checked && box.run > 0) drawDifference(context, sight, recording, from, to, part, own, style.color);
    // On a map every point has a rim of the background, with which its colour has contrast.
    const rim = mapped ? `rgb(${ground.join(", ")})` : null;
    drawPoints(context, sight, recording, from, to, part, own, palette, buckets, scale, look.zoom, rim);
    if (now.forces && now.arrows) drawForces(context, sight, recording, nearest, own, now.forces.values, strong[box.run], style.color, 1);
    if (chosen >= 0) {
      drawPath(context, sight, recording, from, to, part, chosen, style.color);
      if (now.forces) drawForces(context, sight, recording, nearest, [chosen, chosen + 1], now.forces.values, strong[box.run], style.color, 2);
    }
    context.restore();
  }
  return shade;
}

/** The same point in the other run, or -1. */
function partnerOf(recording, point) {
  if (point < 0 || recording.runs.length < 2) return -1;
  return (point + recording.points / 2) % recording.points;
}

/** For each run, a force that few points exceed: the 95th percentile of lengths, or the largest. It scales arrows. */
function strongForces(values, { points, runs }) {
  const size = (i) => Math.hypot(values[i], values[points + i], values[2 * points + i]);
  const own = points / runs.length;
  return runs.map((_, run) => {
    const sizes = range(run * own, (run + 1) * own).map(size).sort((a, b) => a - b);
    return sizes[Math.floor(0.95 * (own - 1))] || sizes.at(-1) || Infinity;
  });
}

/** Arrows in the direction of the force, ARROW cells long where it is strong. */
function drawForces(context, sight, recording, frame, [first, past], values, strong, colour, width) {
  const { points, steps } = recording;
  const solid = recording.grid[0] > 1;
  context.globalAlpha = width > 1 ? 1 : 0.75;
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.beginPath();
  for (let i = first; i < past; i++) {
    const place = [0, 1, 2].map((axis) => (axis || solid ? (frame.places[axis * points + i] + 0.5) / steps : 0));
    const force = [0, 1, 2].map((axis) => values[axis * points + i]);
    const size = Math.hypot(...force);
    const least = width > 1 ? 0.5 : 0; // the arrow of a selected point can always be seen
    const length = size && Math.max(Math.min(size / strong, 1.5), least) * ARROW;
    const end = place.map((value, axis) => value + (size ? (force[axis] / size) * length : 0));
    const [x0, y0] = [seenX(sight, ...place), seenY(sight, ...place)];
    const [x, y] = [seenX(sight, ...end), seenY(sight, ...end)];
    const long = Math.hypot(x - x0, y - y0);
    if (long < 1.5) continue;
    const tip = Math.min(long / 2, 3 + 2 * width);
    const angle = Math.atan2(y - y0, x - x0);
    context.moveTo(x0, y0);
    context.lineTo(x, y);
    for (const side of [-2.6, 2.6]) {
      context.moveTo(x, y);
      context.lineTo(x + tip * Math.cos(angle + side), y + tip * Math.sin(angle + side));
    }
  }
  context.stroke();
}

/** The way of one point from its start, a ring there and a ring around it now. */
function drawPath(context, sight, recording, from, to, part, point, colour) {
  context.globalAlpha = 1;
  context.strokeStyle = colour;
  context.lineWidth = 1.5;
  let x, y;
  context.beginPath();
  const visit = (_i, d, h, w) => {
    [x, y] = [seenX(sight, d, h, w), seenY(sight, d, h, w)];
    context.lineTo(x, y);
  };
  for (let frame = 0; frame <= from; frame++) eachPlace(recording, frame, frame, 0, [point, point + 1], visit);
  if (part > 0) eachPlace(recording, from, to, part, [point, point + 1], visit);
  context.moveTo(x + 7, y);
  context.arc(x, y, 7, 0, 7);
  eachPlace(recording, 0, 0, 0, [point, point + 1], visit);
  context.moveTo(x + 3, y);
  context.arc(x, y, 3, 0, 7);
  context.stroke();
}

/** From each point of the first run to the same point of the second. */
function drawDifference(context, sight, recording, from, to, part, [first, past], colour) {
  const half = recording.points / 2;
  const other = new Map();
  eachPlace(recording, from, to, part, [first - half, past - half], (i, d, h, w) =>
    other.set(i + half, [seenX(sight, d, h, w), seenY(sight, d, h, w)]),
  );
  context.globalAlpha = 0.6;
  context.strokeStyle = colour;
  context.lineWidth = 1;
  context.beginPath();
  eachPlace(recording, from, to, part, [first, past], (i, d, h, w) => {
    context.moveTo(...other.get(i));
    context.lineTo(seenX(sight, d, h, w), seenY(sight, d, h, w));
  });
  context.stroke();
}

/** Grey squares: the share of a class's real clouds that occupy each cell. */
function drawMean(context, sight, recording, means, label, scale, colour) {
  const [deep, high, wide] = recording.grid;
  const cells = deep * high * wide;
  const side = scale * (deep > 1 ? 0.9 : 1);
  context.fillStyle = colour;
  for (let cell = 0; cell < cells; cell++) {
    const share = means[label * cells + cell] / 255;
    if (share < 0.06) continue;
    const [d, h, w] = [Math.floor(cell / wide / high), Math.floor(cell / wide) % high, cell % wide];
    const middle = [deep > 1 ? d + 0.5 : 0, h + 0.5, w + 0.5];
    context.globalAlpha = MEAN * share;
    context.fillRect(seenX(sight, ...middle) - side / 2, seenY(sight, ...middle) - side / 2, side, side);
  }
}

/** The energy around a point as colours, dark blue where it is low. */
function drawMap(context, sight, { place, reach, side, values }) {
  const palette = ramp(CIVIDIS);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const step = (2 * reach) / (side - 1);
  context.globalAlpha = 1;
  values.forEach((value, i) => {
    const [h, w] = [Math.floor(i / side), i % side].map((at, axis) => place[axis + 1] - reach + at * step - step / 2);
    context.fillStyle = context.strokeStyle = palette[bucketOf((value - low) / (high - low || 1))];
    context.beginPath();
    for (const [dh, dw] of [[0, 0], [0, step], [step, step], [step, 0]])
      context.lineTo(seenX(sight, place[0], h + dh, w + dw), seenY(sight, place[0], h + dh, w + dw));
    context.fill();
  });
}

/** On the full screen: the number of columns with the largest tiles, and their side. */
function largest(ui, count, room, ratio, extra) {
  const others = [...ui.root.children].filter((child) => child !== ui.clouds);
  const taken = others.reduce((sum, child) => sum + (child.offsetHeight && child.offsetHeight + 8), 24);
  const height = Math.max(window.innerHeight - taken, window.innerHeight / 2);
  const side = (columns) =>
    Math.min(room / columns - 8, (height / Math.ceil(count / columns) - extra) / ratio);
  const best = Array.from({ length: count }, (_, i) => i + 1).reduce((a, b) => (side(b) > side(a) ? b : a));
  return [best, side(best)];
}

// How a place is seen: x = x0 + xd * depth + xh * height + xw * width, y likewise, and z: nearer is larger, -1 to 1.
function flat(grid, x, y, scale) {
  const [x0, y0] = [x - (scale * grid[2]) / 2, y - (scale * grid[1]) / 2];
  return { x0, xd: 0, xh: 0, xw: scale, y0, yd: 0, yh: scale, yw: 0, z0: 0, zd: 0, zh: 0, zw: 0 };
}

function turned(look, grid, x, y, scale) {
  const [cosine, sine] = [Math.cos(look.yaw), Math.sin(look.yaw)];
  const [up, over] = [Math.cos(look.pitch), Math.sin(look.pitch)];
  const sight = { xd: scale * sine, xh: 0, xw: scale * cosine };
  Object.assign(sight, { yd: -scale * over * cosine, yh: scale * up, yw: scale * over * sine });
  const far = 2 / Math.hypot(...grid);
  Object.assign(sight, { zd: -far * up * cosine, zh: -far * over, zw: far * up * sine });
  const middle = (d, h, w) => (d * grid[0] + h * grid[1] + w * grid[2]) / 2;
  sight.x0 = x - middle(sight.xd, sight.xh, sight.xw);
  sight.y0 = y - middle(sight.yd, sight.yh, sight.yw);
  sight.z0 = -middle(sight.zd, sight.zh, sight.zw);
  return sight;
}

const seenX = (s, d, h, w) => s.x0 + s.xd * d + s.xh * h + s.xw * w;
const seenY = (s, d, h, w) => s.y0 + s.yd * d + s.yh * h + s.yw * w;
const seenZ = (s, d, h, w) => s.z0 + s.zd * d + s.zh * h + s.zw * w;

/** Calls visit(point, depth, height, width) for the points of a range, `part` of the way from one frame to the next. */
function eachPlace(recording, from, to, part, [first, past], visit) {
  const { points, steps } = recording;
  const [a, b] = [recording.frames[from].places, recording.frames[to].places];
  const solid = recording.grid[0] > 1;
  const at = (i) => (a[i] + part * (b[i] - a[i]) + 0.5) / steps;
  for (let i = first; i < past; i++) visit(i, solid ? at(i) : 0, at(points + i), at(2 * points + i));
}

function drawPoints(context, sight, recording, from, to, part, own, palette, buckets, scale, zoom, rim) {
  const radius = Math.min(Math.max((scale / zoom) * 0.26, 1.2), 3.6) * Math.sqrt(zoom);
  const solid = recording.grid[0] > 1;
  // Points are opaque, so that all have the contrast of their colour. Near ones are larger and on top.
  // One path for the points of a layer of depth that have the same colour, because paths cost more than points.
  const groups = new Map();
  eachPlace(recording, from, to, part, own, (i, d, h, w) => {
    const layer = solid ? Math.max(Math.floor((seenZ(sight, d, h, w) + 1) * (LAYERS / 2)), 0) : 0;
    const key = layer * LEVELS + buckets[i];
    const group = groups.get(key) ?? groups.set(key, []).get(key);
    group.push(seenX(sight, d, h, w), seenY(sight, d, h, w));
  });
  const order = [...groups.keys()].sort((a, b) => a - b);
  context.globalAlpha = 1;
  const paint = (key, colour, more) => {
    const near = solid ? ((Math.floor(key / LEVELS) + 0.5) * 2) / LAYERS - 1 : 0;
    const size = Math.max(radius * (1 + 0.45 * near), 1) + more;
    const places = groups.get(key);
    context.fillStyle = colour;
    context.beginPath();
    for (let i = 0; i < places.length; i += 2) {
      const [x, y] = [places[i], places[i + 1]];
      if (size < 1.6) context.rect(x - size, y - size, 2 * size, 2 * size); // a disc would look the same
      else {
        context.moveTo(x + size, y);
        context.arc(x, y, size, 0, 7);
      }
    }
    context.fill();
  };
  if (rim) order.forEach((key) => paint(key, rim, 2));
  order.forEach((key) => paint(key, palette[key % LEVELS], 0));
}

function drawTrails(context, sight, recording, from, to, part, range, colour) {
  context.strokeStyle = colour;
  context.lineWidth = 0.8;
  for (let age = 0; age < TRAIL && from - age >= 0; age++) {
    const [start, end, share] = age === 0 ? [from, to, part] : [from - age, from - age + 1, 1];
    const places = recording.frames[start].places;
    const { points, steps } = recording;
    const solid = recording.grid[0] > 1;
    context.globalAlpha = 0.4 * (1 - age / TRAIL);
    context.beginPath();
    eachPlace(recording, start, end, share, range, (i, d, h, w) => {
      const before = [0, 1, 2].map((axis) => (axis || solid ? (places[axis * points + i] + 0.5) / steps : 0));
      context.moveTo(seenX(sight, ...before), seenY(sight, ...before));
      context.lineTo(seenX(sight, d, h, w), seenY(sight, d, h, w));
    });
    context.stroke();
  }
}

/** The projection that is scored: the cells that hold a point, as squares. */
function drawCells(context, sight, recording, frame, [first, past], scale, colour, solid) {
  const { points, steps } = recording;
  const [, high, wide] = recording.grid;
  const taken = new Set();
  for (let i = first; i < past; i++) {
    const [d, h, w] = [0, 1, 2].map((axis) => Math.floor(frame.places[axis * points + i] / steps));
    taken.add((d * high + h) * wide + w);
  }
  context.fillStyle = colour;
  context.globalAlpha = CELLS;
  context.beginPath(); // one path: cells that overlap do not get darker
  const side = scale * (solid ? 0.9 : 1);
  for (const cell of taken) {
    const [d, h, w] = [Math.floor(cell / wide / high), Math.floor(cell / wide) % high, cell % wide];
    const middle = [solid ? d + 0.5 : 0, h + 0.5, w + 0.5];
    context.rect(seenX(sight, ...middle) - side / 2, seenY(sight, ...middle) - side / 2, side, side);
  }
  context.fill();
}

function drawBox(context, sight, [deep, high, wide]) {
  const corners = [0, 1, 2, 3, 4, 5, 6, 7].map((c) => [c & 4 ? deep : 0, c & 2 ? high : 0, c & 1 ? wide : 0]);
  context.beginPath();
  for (let c = 0; c < 8; c++) {
    for (const bit of [1, 2, 4]) {
      if (c & bit) continue;
      context.moveTo(seenX(sight, ...corners[c]), seenY(sight, ...corners[c]));
      context.lineTo(seenX(sight, ...corners[c | bit]), seenY(sight, ...corners[c | bit]));
    }
  }
  context.stroke();
}

/** A palette, for every point the place of its colour in it, and their meaning; sets the legend. */
function colours(ui, recording, from, to, part, ground) {
  const { points } = recording;
  const buckets = new Uint8Array(points);
  const everyone = [0, points];
  const dark = luminance(ground) < 0.18;
  if (ui.colour.value === "identity") {
    // A point keeps the colour of the direction in which it started, seen from the middle of the grid.
    const palette = [...SECTORS, dark ? "#d0d0d0" : "#000000"].map((colour) => legible(colour, ground));
    const [deep, high, wide] = recording.grid;
    eachPlace(recording, 0, 0, 0, everyone, (i, d, h, w) => {
      const angle = Math.atan2(h - high / 2, w - wide / 2) / (2 * Math.PI) + 1;
      buckets[i] = Math.floor(angle * palette.length) % palette.length;
    });
    const share = (i) => `${(100 * i) / palette.length}%`;
    const steps = palette.map((colour, i) => `${colour} ${share(i)} ${share(i + 1)}`);
    legend(ui, "direction from the middle at the start", `linear-gradient(90deg, ${steps.join(", ")})`, "");
    return { palette, buckets, shade: "Shaded by direction from the middle at the start" };
  }
  const palette = ramp(dark ? RAMP_ON_DARK : RAMP_ON_LIGHT).map((colour) => legible(colour, ground));
  const background = `linear-gradient(90deg, ${palette.join(", ")})`;
  const frame = recording.frames[Math.round(from + part)];
  if (ui.colour.value === "gradient") {
    if (!frame.gradients || frame.update === 0) {
      legend(ui, "gradient: none before the first update", background, "");
      return { palette, buckets, shade: "No gradients before the first update" };
    }
    const sorted = Array.from(frame.gradients).sort((a, b) => a - b);
    const low = sorted[Math.floor(0.02 * (points - 1))];
    const high = Math.max(sorted[Math.floor(0.98 * (points - 1))], low + 1);
    frame.gradients.forEach((level, i) => (buckets[i] = bucketOf((level - low) / (high - low))));
    const size = (level) => (10 ** (recording.lowest_decade + level / recording.levels_per_decade)).toExponential(0);
    legend(ui, `|gradient| per cell ${size(low)}`, background, size(high));
    return { palette, buckets, shade: `Shaded by gradient per cell, ${size(low)} to ${size(high)}` };
  }
  // The scale is half of the grid's longer side: few points go further, and colours mean the same in every recording.
  const most = Math.max(...recording.grid) / 2;
  const start = recording.frames[0].places;
  const places = (i) => [start[i], start[points + i], start[2 * points + i]].map((q) => (q + 0.5) / recording.steps);
  const solid = recording.grid[0] > 1;
  let sum = 0;
  eachPlace(recording, from, to, part, everyone, (i, d, h, w) => {
    const [d0, h0, w0] = places(i);
    const way = Math.hypot(solid ? d - d0 : 0, h - h0, w - w0);
    sum += way;
    buckets[i] = bucketOf(way / most);
  });
  legend(ui, "cells from the start: 0", background, `${most} or more`);
  const mean = points ? sum / points : 0;
  return { palette, buckets, shade: `Shaded by displacement: all points, mean ${mean.toFixed(1)} cells from the start` };
}

const bucketOf = (share) => Math.min(Math.max(Math.floor(share * LEVELS), 0), LEVELS - 1);

function legend(ui, low, background, high) {
  if (ui.low.textContent !== low) ui.low.textContent = low;
  if (ui.high.textContent !== high) ui.high.textContent = high;
  if (ui.ramp.dataset.background !== background) ui.ramp.style.background = ui.ramp.dataset.background = background;
}

function ramp(stops) {
  return Array.from({ length: LEVELS }, (_, level) => {
    const at = (level / (LEVELS - 1)) * (stops.length - 1);
    const left = Math.min(Math.floor(at), stops.length - 2);
    return `rgb(${mixed(channels(stops[left]), channels(stops[left + 1]), at - left).join(", ")})`;
  });
}

/** Red, green and blue, 0 to 255, of #rrggbb or rgb(...). */
function channels(colour) {
  if (colour[0] === "#") return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return colour.match(/[\d.]+/g).slice(0, 3).map(Number);
}

const mixed = (one, other, share) => one.map((value, i) => Math.round(value + share * (other[i] - value)));

/** Relative luminance and contrast as in WCAG 2.2. */
function luminance(colour) {
  const linear = colour.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}

function contrast(one, other) {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}

/** The colour, darker on a light background or lighter on a dark one until its contrast is enough. */
function legible(colour, background) {
  const end = luminance(background) < 0.18 ? [255, 255, 255] : [0, 0, 0];
  let result = channels(colour);
  for (let share = 0; share < 1 && contrast(result, background) < CONTRAST; share += 0.04)
    result = mixed(channels(colour), end, share);
  return `rgb(${result.join(", ")})`;
}

/**
 * The frame of a chart over the updates; returns its context, its edges and the x of an update from 0.
 * beside: texts that need room right of it
 */
function drawFrame(canvas, title, iterations, beside = []) {
  const height = 120;
  const [context, width] = prepare(canvas, height);
  const room = Math.max(0, ...beside.map((text) => context.measureText(text).width + 8));
  const [left, right, top, bottom] = [52, width - 10 - room, 22, height - 20];
  context.fillStyle = context.strokeStyle = getComputedStyle(canvas).color;
  context.textAlign = "left";
  context.fillText(shorten(context, title, width - left), left, 13);
  context.globalAlpha = 0.3;
  context.strokeRect(left + 0.5, top + 0.5, right - left - 1, bottom - top - 1);
  context.globalAlpha = 1;
  context.textAlign = "right";
  context.fillText(String(iterations), right, height - 5);
  context.textAlign = "left";
  context.fillText("1", left, height - 5);
  context.textAlign = "center";
  context.fillText("update", (left + right) / 2, height - 5);
  context.textAlign = "right";
  context.textBaseline = "middle";
  const x = (i) => left + ((i + 0.5) / Math.max(iterations, 1)) * (right - left);
  return { context, left, right, top, bottom, x };
}

/** A line over the updates; the second run's is dashed. */
function drawLine(context, colours, run, places) {
  context.strokeStyle = colours[run];
  context.lineWidth = 1.4;
  context.setLineDash(run ? [5, 3] : []);
  context.beginPath();
  places.forEach(([x, y]) => context.lineTo(x, y));
  context.stroke();
  context.setLineDash([]);
}

/** One number per iteration and run, on a logarithmic axis, with a mark at the update that is shown. */
function drawCurves(canvas, { name, series, iterations, mark, dark, runs }) {
  const colours = RUNS[dark ? "dark" : "light"];
  const here = series.map(({ values }) => values[mark]);
  const named = (text, run) => (runs.length > 1 ? `${runs[run]} ${text}` : text);
  const brief = (value, run) => (runs.length > 1 ? `${STROKES[run]} ${value}` : value);
  const shown = here.map((value, run) => value > 0 && brief(readable(value), run)).filter(Boolean);
  const title = runs.length > 1 ? name.split(",")[0] : name;
  const said = series.map(({ values }, run) => {
    const ends = values.length ? ` From ${readable(values[0])} to ${readable(values.at(-1))}.` : "";
    return `${named(here[run] > 0 ? readable(here[run]) : "no value", run)} here.${ends}`;
  });
  canvas.setAttribute("aria-label", `${name.split(",")[0]}: ${said.join(" ")}`);
  const long = Math.max(iterations, ...series.map(({ values }) => values.length));
  const { context, left, top, bottom, x } = drawFrame(canvas, shown.length ? `${title}: ${shown.join("  ")}` : title, long);
  const positive = series.flatMap(({ values }) => values.filter((value) => value > 0));
  context.textBaseline = "middle";
  if (!positive.length) return;
  const extreme = (choose) => Math.log10(positive.reduce((a, b) => choose(a, b)));
  const [lowest, highest] = [extreme(Math.min), extreme(Math.max)];
  const margin = Math.max(0.08 * (highest - lowest), 0.02);
  const share = (value) => (Math.log10(value) - lowest + margin) / (highest - lowest + 2 * margin);
  const y = (value) => bottom - share(value) * (bottom - top);
  context.fillText(readable(10 ** highest), left - 4, Math.max(y(10 ** highest), top + 5));
  if (y(10 ** lowest) - y(10 ** highest) > 14) context.fillText(readable(10 ** lowest), left - 4, y(10 ** lowest));
  series.forEach(({ values }, run) =>
    drawLine(context, colours, run, values.map((value, i) => [x(i), y(value)]).filter((_, i) => values[i] > 0)),
  );
  if (!here.some((value) => value > 0)) return;
  context.strokeStyle = context.fillStyle = dark ? "#fbb24a" : "#d2434f";
  context.lineWidth = 1.2;
  context.beginPath();
  context.moveTo(x(mark), top);
  context.lineTo(x(mark), bottom);
  context.stroke();
  context.beginPath();
  for (const value of here.filter((value) => value > 0)) {
    context.moveTo(x(mark), y(value));
    context.arc(x(mark), y(value), 3.5, 0, 7);
  }
  context.fill();
}

/** Accuracies on validation clouds over the updates, in percent, with lines for sets without distillation. */
function drawScores(canvas, { iterations, dark, runs }, scores) {
  const baselines = Object.entries(scores.baselines);
  const latest = scores.runs.map((points) => (points.length ? `${points.at(-1)[1].toFixed(0)} %` : ""));
  const list = (tell) => latest.map((text, run) => (runs.length > 1 && text ? tell(text, run) : text)).filter(Boolean);
  const titled = (words) => `accuracy on validation${words.length ? `: ${words.join("  ")}` : ""}`;
  const heading = titled(list((text, run) => `${runs[run]} ${text}`));
  const told = baselines.map(([name, value]) => `${name} ${value.toFixed(0)} %`).join(", ");
  canvas.setAttribute("aria-label", `${heading}.${told && ` Without distillation: ${told}.`} ${scores.note}`);
  canvas.title = scores.note;
  const falling = [...baselines].sort((a, b) => b[1] - a[1]).map(([name, value]) => [`${name} ${value.toFixed(0)}`, value]);
  const title = titled(list((text, run) => `${STROKES[run]} ${text}`));
  const { context, left, right, top, bottom, x } = drawFrame(canvas, title, iterations, falling.map(([text]) => text));
  const values = [...baselines.map(([, value]) => value), ...scores.runs.flat().map(([, value]) => value)];
  if (!values.length) return;
  const [low, high] = [Math.max(Math.min(...values) - 5, 0), Math.min(Math.max(...values) + 5, 100)];
  const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
  for (const value of [low, high]) context.fillText(`${value.toFixed(0)} %`, left - 4, y(value));
  context.textAlign = "left";
  const line = 1.1 * parseFloat(getComputedStyle(canvas).fontSize);
  // Names stand right of the chart, each at its line or below the name before, and as low as the chart at most.
  let free = top;
  for (const [i, [text, value]] of falling.entries()) {
    const lowest = bottom - line * (falling.length - 1 - i);
    const place = Math.min(Math.max(y(value), free), lowest);
    free = place + line;
    context.globalAlpha = 0.6;
    context.lineWidth = 1;
    context.setLineDash([1, 3]);
    context.beginPath();
    context.moveTo(left, y(value));
    context.lineTo(right, y(value));
    context.lineTo(right + 6, place);
    context.stroke();
    context.setLineDash([]);
    context.globalAlpha = 1;
    context.fillText(text, right + 8, place);
  }
  const colours = RUNS[dark ? "dark" : "light"];
  scores.runs.forEach((points, run) => {
    const places = points.map(([update, value]) => [x(update - 1), y(value)]);
    drawLine(context, colours, run, places);
    context.fillStyle = colours[run];
    context.beginPath();
    places.forEach(([px, py]) => {
      context.moveTo(px + 3, py);
      context.arc(px, py, 3, 0, 7);
    });
    context.fill();
  });
}

const readable = (value) => (value >= 0.01 && value < 10000 ? String(Number(value.toPrecision(3))) : value.toExponential(1));

/** A name as long as fits. */
function shorten(context, name, width) {
  let text = name;
  while (text.length > 1 && context.measureText(text).width > width) text = `${text.slice(0, -2)}…`;
  return text;
}
