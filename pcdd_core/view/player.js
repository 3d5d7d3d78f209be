// The view of moving points: clouds in tiles, a slider over the frames, two curves. No dependencies, no network.
//
// One renderer for two places. In JupyterLab it is the front end of live.PlayerWidget, which sends frames while a
// distillation runs (`render`, anywidget's entry); in the page that player.save_player writes, it shows a recording that
// lies in the page (`mount`). What can be chosen here needs no kernel, so it works in a saved notebook too.
//
// Coordinates are in cells, in the order depth, height, width, as everywhere in pcdd. They arrive as whole numbers of
// 1 / steps of a cell, rounded down, so that their cell is exact.

const TRAIL = 8; // frames that a trail goes back
const SECONDS = 10; // that a whole recording plays, unless that is less than SLOWEST frames a second
const SLOWEST = 10;
const REDRAWS = { live: 12, replay: 25 }; // a second, at most, while points glide; live, the processor has other work
const HUES = 36;
// Ramps from little to much; both ends can be told from the background.
const RAMP_ON_LIGHT = ["#b9c0d8", "#5b6fc4", "#8a2a9f", "#d2434f", "#e8820c"];
const RAMP_ON_DARK = ["#4a5270", "#6f7df7", "#c05fd6", "#f0737a", "#fbd24a"];
const LEVELS = 32; // colours of a ramp

const STYLE = `
.pcdd-player { font: 13px/1.4 var(--jp-ui-font-family, system-ui, sans-serif); color: var(--jp-ui-font-color1, CanvasText);
  background: var(--jp-layout-color0, Canvas); padding: 4px 0; max-width: 1100px; }
.pcdd-player .row { display: flex; flex-wrap: wrap; align-items: center; gap: 6px 16px; margin: 4px 2px; }
.pcdd-player label { display: inline-flex; align-items: center; gap: 5px; white-space: nowrap; }
.pcdd-player select, .pcdd-player button { font: inherit; color: inherit; background: var(--jp-layout-color1, Canvas);
  border: 1px solid var(--jp-border-color1, GrayText); border-radius: 3px; padding: 2px 8px; }
.pcdd-player button { min-width: 6.5em; }
.pcdd-player option { color: var(--jp-ui-font-color1, CanvasText); background: var(--jp-layout-color1, Canvas); }
.pcdd-player :focus-visible { outline: 2px solid var(--jp-brand-color1, Highlight); outline-offset: 1px; }
.pcdd-player input[type=range] { flex: 1; min-width: 120px; accent-color: var(--jp-brand-color1, AccentColor); }
.pcdd-player .legend { display: inline-flex; align-items: center; gap: 6px; margin-left: auto; }
.pcdd-player .ramp { width: 90px; height: 10px; border-radius: 2px; }
.pcdd-player .moment { min-width: 11em; text-align: right; font-variant-numeric: tabular-nums; }
.pcdd-player canvas { display: block; width: 100%; }
.pcdd-player canvas.turnable { cursor: grab; touch-action: none; }
.pcdd-player .note { opacity: 0.75; }
`;

/** anywidget's entry: the view of one widget. `recording` holds a whole recording, custom messages bring frames. */
function render({ model, el }) {
  const player = mount(el);
  let before = Promise.resolve(); // decoding takes a moment, in which frames must not overtake it
  const inTurn = (act) => (before = before.then(act).catch(console.error));
  const load = () => {
    const bytes = model.get("recording");
    if (bytes.byteLength) inTurn(async () => player.show(await decode(bytes)));
  };
  const add = (message, buffers) => inTurn(() => player.add(message, buffers));
  model.on("change:recording", load);
  model.on("msg:custom", add);
  load();
  return () => {
    model.off("change:recording", load);
    model.off("msg:custom", add);
    player.remove();
  };
}
export default { render };

/** Bytes of player.encode in Python: a gzipped header and arrays -> { header..., frames: [{update, places, gradients}] }. */
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
  const loss = Array.from(take(Float32Array, header.curve_length));
  const mean_gradient = Array.from(take(Float32Array, header.curve_length));
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

/** Build the view in `root`; returns { show(recording), add(message, buffers), remove() }. */
export function mount(root) {
  root.classList.add("pcdd-player");
  root.dataset.lmSuppressShortcuts = "true"; // JupyterLab's, so that arrow keys reach the slider
  const ui = controls(root);
  const turn = { yaw: 0.6, pitch: 0.45 };
  let recording = null;
  let position = 0; // of the frame shown; between whole numbers points are on their way
  let goal = 0; // where points glide to
  let speed = 0; // frames a second
  let playing = false;
  let last = 0; // milliseconds of the last redraw
  let arrived = 0; // and of the last frame from the kernel
  let waiting = null; // animation frame asked for
  let soon = null; // and the timer that will ask for one

  const redraw = () => {
    waiting ??= requestAnimationFrame(frame);
  };
  const redrawSoon = () => {
    clearTimeout(soon);
    soon = setTimeout(redraw, 1000 / (playing ? REDRAWS.replay : REDRAWS.live) - 8); // less half of a screen's frame
  };

  function frame(now) {
    waiting = null;
    if (!recording) return;
    // A frame's time is that of its beginning: on a busy machine it may lie before the click that asked for it.
    const seconds = Math.min(Math.max(now - last, 0) / 1000, 0.2);
    last = Math.max(now, last);
    if (position < goal) position = Math.min(goal, position + seconds * speed);
    if (position === goal && playing) setPlaying(false);
    ui.slider.value = Math.round(position);
    draw();
    if (position !== goal) redrawSoon();
  }

  function jump(to) {
    position = goal = to;
    redraw();
  }

  function setPlaying(on) {
    playing = on;
    const end = recording.frames.length - 1;
    if (on && position >= end) position = 0;
    goal = on ? end : Math.round(position);
    if (!on) position = goal;
    speed = Math.max(SLOWEST, end / SECONDS);
    ui.play.textContent = on ? "❚❚ Hold" : "▶ Replay";
    last = performance.now();
    redraw();
  }

  function fit() {
    const end = recording.frames.length - 1;
    ui.slider.max = end;
    ui.slider.disabled = ui.play.disabled = end === 0;
    goal = Math.min(goal, end);
    position = Math.min(position, end);
  }

  /** Take over a whole recording; what is shown stays the same moment, or the end if that was shown. */
  function show(given) {
    const before = recording && recording.frames[Math.round(position)];
    const atEnd = !recording || Math.round(position) >= recording.frames.length - 1;
    const same = before && recording.offsets.join() === given.offsets.join();
    recording = given;
    playing = false;
    ui.play.textContent = "▶ Replay";
    const kept = same && !atEnd ? recording.frames.findIndex((one) => one.update >= before.update) : -1;
    position = goal = kept >= 0 ? kept : recording.frames.length - 1;
    fit();
    choices(ui, recording);
    redraw();
  }

  /** A frame from the kernel: { update, stride, first, loss, mean_gradient, final } and the buffers places, gradients. */
  function add(message, buffers) {
    if (!recording) return;
    const following = !playing && goal >= recording.frames.length - 1;
    const whole = (buffer, kind) => new kind(buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength));
    const { update, stride, first, final } = message;
    const frames = recording.frames;
    const shown = frames[Math.round(position)].update;
    // The kernel keeps every stride-th frame, and the last: the same here.
    recording.frames = frames.filter((one) => one.update % stride === 0 && one.update < update);
    recording.frames.push({ update, places: whole(buffers[0], Uint16Array), gradients: whole(buffers[1], Uint8Array) });
    recording.has_gradients = true;
    for (const name of ["loss", "mean_gradient"]) {
      recording[name].length = Math.min(recording[name].length, first);
      while (recording[name].length < first) recording[name].push(NaN);
      recording[name].push(...message[name]);
    }
    const now = performance.now();
    const end = recording.frames.length - 1;
    if (following) {
      // Points glide to where they are now in the time that the last iteration took, so they move evenly.
      position = Math.max(end - 1, 0);
      goal = end;
      speed = 1000 / Math.min(Math.max(now - arrived, 30), 1000);
      if (final || end === 0 || now - arrived < 1000 / REDRAWS.live) position = end; // no time to glide
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
    redraw();
  }

  function draw() {
    const shown = recording.frames[Math.round(position)];
    ui.moment.textContent = `update ${shown.update} of ${recording.iterations}`;
    ui.slider.setAttribute("aria-valuetext", ui.moment.textContent);
    root.dataset.update = shown.update;
    root.dataset.frames = recording.frames.length;
    const dark = isDark(getComputedStyle(root).color);
    drawClouds(ui, recording, position, turn, dark);
    const mark = shown.update - 1;
    drawCurve(ui.loss, recording.loss, recording.iterations, mark, "matching loss, all classes", dark);
    drawCurve(ui.gradient, recording.mean_gradient, recording.iterations, mark, "mean |gradient|, per cell", dark);
  }

  ui.play.onclick = () => setPlaying(!playing);
  ui.slider.oninput = () => {
    if (playing) setPlaying(false);
    jump(Number(ui.slider.value));
  };
  for (const control of [ui.which, ui.colour, ui.trails, ui.cells]) control.onchange = redraw;
  turnable(ui.clouds, turn, () => recording && recording.grid[0] > 1, redraw);
  const resized = new ResizeObserver(redraw);
  resized.observe(root);
  const remove = () => {
    resized.disconnect();
    clearTimeout(soon);
    if (waiting) cancelAnimationFrame(waiting);
  };
  return { show, add, remove };
}

// --- controls ------------------------------------------------------------------------------------------------------

function controls(root) {
  const make = (parent, tag, attributes = {}, text = "") => {
    const element = document.createElement(tag);
    Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
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
  make(root, "style", {}, STYLE);
  const top = make(root, "div", { class: "row" });
  const which = labelled(top, "Class", "select");
  const colour = labelled(top, "Colour", "select");
  make(colour, "option", { value: "displacement" }, "displacement");
  make(colour, "option", { value: "gradient" }, "gradient");
  make(colour, "option", { value: "identity" }, "identity");
  const trails = labelled(top, "Trails", "input", { type: "checkbox" });
  const cells = labelled(top, "Projection", "input", { type: "checkbox", title: "occupied cells: what is scored" });
  const legend = make(top, "span", { class: "legend" });
  const low = make(legend, "span");
  const ramp = make(legend, "span", { class: "ramp" });
  const high = make(legend, "span");
  const clouds = make(root, "canvas", { class: "clouds", role: "img", "aria-label": "the clouds" });
  const note = make(root, "div", { class: "row note" });
  const bottom = make(root, "div", { class: "row" });
  const play = make(bottom, "button", { type: "button" }, "▶ Replay");
  const slider = make(bottom, "input", { type: "range", min: 0, max: 0, step: 1, "aria-label": "moment of the recording" });
  const moment = make(bottom, "span", { class: "moment" });
  const curves = make(root, "div", { class: "row" });
  const half = { style: "flex: 1 1 300px; min-width: 0" };
  const loss = make(make(curves, "div", half), "canvas", { class: "loss", role: "img", "aria-label": "matching loss" });
  const gradient = make(make(curves, "div", half), "canvas", { class: "gradient", role: "img", "aria-label": "mean gradient" });
  return { which, colour, trails, cells, legend, low, ramp, high, clouds, note, play, slider, moment, loss, gradient, make };
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
  ui.clouds.classList.toggle("turnable", solid);
  ui.clouds.tabIndex = solid ? 0 : -1;
  ui.note.textContent = solid ? "Drag to turn, or use the arrow keys." : "";
  ui.note.hidden = !solid;
}

function turnable(canvas, turn, active, redraw) {
  const by = (yaw, pitch) => {
    turn.yaw += yaw;
    turn.pitch = Math.min(Math.max(turn.pitch + pitch, -Math.PI / 2), Math.PI / 2);
    redraw();
  };
  canvas.onpointerdown = (event) => active() && canvas.setPointerCapture(event.pointerId);
  canvas.onpointermove = (event) => {
    if (canvas.hasPointerCapture(event.pointerId)) by(event.movementX / 120, event.movementY / 120);
  };
  canvas.onkeydown = (event) => {
    const step = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
    if (!active() || !step) return;
    by(...step);
    event.preventDefault();
  };
}

// --- drawing -------------------------------------------------------------------------------------------------------

/** A canvas as wide as its place, cleared, in CSS pixels; returns [context, width]. */
function prepare(canvas, height) {
  const width = canvas.parentElement.clientWidth;
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

function drawClouds(ui, recording, position, turn, dark) {
  const all = recording.labels.map((label, cloud) => ({ label, cloud }));
  const shown = ui.which.value === "" ? all : all.filter((one) => one.label === Number(ui.which.value));
  const [deep, high, wide] = recording.grid;
  const solid = deep > 1;
  const across = solid ? Math.hypot(deep, high, wide) : wide;
  const down = solid ? across : high;
  const room = ui.clouds.parentElement.clientWidth;
  if (!room) return; // not on screen
  const columns = shown.length === 1 ? 1 : Math.min(shown.length, Math.max(2, room < 560 ? 3 : shown.length > 20 ? 10 : 5));
  const most = shown.length === 1 ? 460 : solid && shown.length < 4 ? 360 : 300;
  const title = 18;
  const gap = 8;
  const tile = Math.min((room - 4) / columns - gap, most);
  const tall = (tile * down) / across;
  const rows = Math.ceil(shown.length / columns);
  const [context, width] = prepare(ui.clouds, rows * (tall + title + gap));
  const style = getComputedStyle(ui.clouds);
  const scale = tile / across;

  const from = Math.min(Math.floor(position), recording.frames.length - 1);
  const to = Math.min(from + 1, recording.frames.length - 1);
  const { palette, buckets } = colours(ui, recording, from, to, position - from, dark);
  const indent = (width - columns * (tile + gap)) / 2;
  shown.forEach(({ label, cloud }, index) => {
    const left = indent + (index % columns) * (tile + gap) + gap / 2;
    const top = Math.floor(index / columns) * (tall + title + gap) + title;
    context.fillStyle = style.color;
    context.textAlign = "center";
    context.textBaseline = "alphabetic";
    context.fillText(shorten(context, recording.class_names[label], tile), left + tile / 2, top - 5);
    const sight = solid ? turned(turn, recording.grid, left, top, tile, scale) : flat(left, top, scale);
    context.save();
    context.strokeStyle = style.color;
    context.globalAlpha = 0.3;
    context.strokeRect(left + 0.5, top + 0.5, tile - 1, tall - 1);
    if (solid) drawBox(context, sight, recording.grid);
    context.beginPath();
    context.rect(left, top, tile, tall);
    context.clip();
    const range = [recording.offsets[cloud], recording.offsets[cloud + 1]];
    const nearest = recording.frames[Math.round(position)];
    if (ui.cells.checked) drawCells(context, sight, recording, nearest, range, scale, style.color, solid);
    if (ui.trails.checked) drawTrails(context, sight, recording, from, to, position - from, range, style.color);
    drawPoints(context, sight, recording, from, to, position - from, range, palette, buckets, scale);
    context.restore();
  });
}

// How a place is seen: x = x0 + xd * depth + xh * height + xw * width, y likewise, and z: nearer is larger, -1 to 1.
function flat(left, top, scale) {
  return { x0: left, xd: 0, xh: 0, xw: scale, y0: top, yd: 0, yh: scale, yw: 0, z0: 0, zd: 0, zh: 0, zw: 0 };
}

function turned(turn, grid, left, top, tile, scale) {
  const [cosine, sine] = [Math.cos(turn.yaw), Math.sin(turn.yaw)];
  const [up, over] = [Math.cos(turn.pitch), Math.sin(turn.pitch)];
  const sight = { xd: scale * sine, xh: 0, xw: scale * cosine };
  Object.assign(sight, { yd: -scale * over * cosine, yh: scale * up, yw: scale * over * sine });
  const far = 2 / Math.hypot(...grid);
  Object.assign(sight, { zd: -far * up * cosine, zh: -far * over, zw: far * up * sine });
  const middle = (d, h, w) => (d * grid[0] + h * grid[1] + w * grid[2]) / 2;
  sight.x0 = left + tile / 2 - middle(sight.xd, sight.xh, sight.xw);
  sight.y0 = top + tile / 2 - middle(sight.yd, sight.yh, sight.yw);
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

function drawPoints(context, sight, recording, from, to, part, range, palette, buckets, scale) {
  const radius = Math.min(Math.max(scale * 0.26, 1.2), 3.6);
  const solid = recording.grid[0] > 1;
  let bucket = -1;
  context.globalAlpha = 0.9;
  eachPlace(recording, from, to, part, range, (i, d, h, w) => {
    if (buckets[i] !== bucket) context.fillStyle = palette[(bucket = buckets[i])];
    const near = solid ? seenZ(sight, d, h, w) : 0;
    const size = radius * (1 + 0.35 * near);
    if (solid) context.globalAlpha = Math.min(Math.max(0.65 + 0.45 * near, 0.15), 1);
    const [x, y] = [seenX(sight, d, h, w), seenY(sight, d, h, w)];
    if (size < 1.6) return context.fillRect(x - size, y - size, 2 * size, 2 * size); // a disc would look the same
    context.beginPath();
    context.arc(x, y, size, 0, 7);
    context.fill();
  });
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
  context.globalAlpha = solid ? 0.12 : 0.22;
  const side = scale * (solid ? 0.9 : 1);
  for (const cell of taken) {
    const [d, h, w] = [Math.floor(cell / wide / high), Math.floor(cell / wide) % high, cell % wide];
    const middle = [solid ? d + 0.5 : 0, h + 0.5, w + 0.5];
    context.fillRect(seenX(sight, ...middle) - side / 2, seenY(sight, ...middle) - side / 2, side, side);
  }
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

/** A palette, and for every point the place of its colour in it; sets the legend. */
function colours(ui, recording, from, to, part, dark) {
  const { points } = recording;
  const buckets = new Uint8Array(points);
  const everyone = [0, points];
  if (ui.colour.value === "identity") {
    // A point keeps the hue of the direction in which it started, seen from the middle of the grid.
    const [deep, high, wide] = recording.grid;
    eachPlace(recording, 0, 0, 0, everyone, (i, d, h, w) => {
      const angle = Math.atan2(h - high / 2, w - wide / 2) / (2 * Math.PI) + 1;
      buckets[i] = Math.floor(angle * HUES) % HUES;
    });
    const palette = Array.from({ length: HUES }, (_, hue) => `hsl(${(360 * hue) / HUES} 75% ${dark ? 62 : 45}%)`);
    legend(ui, "direction from the middle at the start", `linear-gradient(90deg, ${palette.join(", ")})`, "");
    return { palette, buckets };
  }
  const palette = ramp(dark ? RAMP_ON_DARK : RAMP_ON_LIGHT);
  const background = `linear-gradient(90deg, ${palette.join(", ")})`;
  const frame = recording.frames[Math.round(from + part)];
  if (ui.colour.value === "gradient") {
    if (!frame.gradients || frame.update === 0) {
      legend(ui, "gradient: none before the first update", background, "");
      return { palette, buckets };
    }
    const sorted = Array.from(frame.gradients).sort((a, b) => a - b);
    const low = sorted[Math.floor(0.02 * (points - 1))];
    const high = Math.max(sorted[Math.floor(0.98 * (points - 1))], low + 1);
    frame.gradients.forEach((level, i) => (buckets[i] = bucketOf((level - low) / (high - low))));
    const size = (level) => (10 ** (recording.lowest_decade + level / recording.levels_per_decade)).toExponential(0);
    legend(ui, `|gradient| per cell ${size(low)}`, background, size(high));
    return { palette, buckets };
  }
  // The scale is half of the grid's longer side: few points go further, and colours mean the same in every recording.
  const most = Math.max(...recording.grid) / 2;
  const start = recording.frames[0].places;
  const places = (i) => [start[i], start[points + i], start[2 * points + i]].map((q) => (q + 0.5) / recording.steps);
  const solid = recording.grid[0] > 1;
  eachPlace(recording, from, to, part, everyone, (i, d, h, w) => {
    const [d0, h0, w0] = places(i);
    buckets[i] = bucketOf(Math.hypot(solid ? d - d0 : 0, h - h0, w - w0) / most);
  });
  legend(ui, "cells from the start: 0", background, `${most} or more`);
  return { palette, buckets };
}

const bucketOf = (share) => Math.min(Math.max(Math.floor(share * LEVELS), 0), LEVELS - 1);

function legend(ui, low, background, high) {
  if (ui.low.textContent !== low) ui.low.textContent = low;
  if (ui.high.textContent !== high) ui.high.textContent = high;
  if (ui.ramp.dataset.background !== background) ui.ramp.style.background = ui.ramp.dataset.background = background;
}

function ramp(stops) {
  const channels = stops.map((stop) => [1, 3, 5].map((at) => parseInt(stop.slice(at, at + 2), 16)));
  return Array.from({ length: LEVELS }, (_, level) => {
    const at = (level / (LEVELS - 1)) * (stops.length - 1);
    const left = Math.min(Math.floor(at), stops.length - 2);
    const mixed = channels[left].map((value, i) => Math.round(value + (at - left) * (channels[left + 1][i] - value)));
    return `rgb(${mixed.join(", ")})`;
  });
}

/** One number per iteration, on a logarithmic axis, with a mark at the update that is shown. */
function drawCurve(canvas, values, iterations, mark, name, dark) {
  const height = 120;
  const [context, width] = prepare(canvas, height);
  const text = getComputedStyle(canvas).color;
  const [left, right, top, bottom] = [52, width - 10, 22, height - 20];
  context.fillStyle = context.strokeStyle = text;
  const here = values[mark];
  context.textAlign = "left";
  context.fillText(here > 0 ? `${name}: ${readable(here)}` : name, left, 13);
  context.globalAlpha = 0.3;
  context.strokeRect(left + 0.5, top + 0.5, right - left - 1, bottom - top - 1);
  context.globalAlpha = 1;
  context.textAlign = "right";
  context.fillText(String(iterations), right, height - 5);
  context.textAlign = "left";
  context.fillText("1", left, height - 5);
  context.textAlign = "center";
  context.fillText("update", (left + right) / 2, height - 5);
  const positive = values.filter((value) => value > 0);
  if (!positive.length) return;
  const [lowest, highest] = [Math.min(...positive), Math.max(...positive)].map(Math.log10);
  const margin = Math.max(0.08 * (highest - lowest), 0.02);
  const x = (i) => left + ((i + 0.5) / Math.max(iterations, values.length)) * (right - left);
  const share = (value) => (Math.log10(value) - lowest + margin) / (highest - lowest + 2 * margin);
  const y = (value) => bottom - share(value) * (bottom - top);
  context.textAlign = "right";
  context.textBaseline = "middle";
  context.fillText(readable(10 ** highest), left - 4, Math.max(y(10 ** highest), top + 5));
  if (y(10 ** lowest) - y(10 ** highest) > 14) context.fillText(readable(10 ** lowest), left - 4, y(10 ** lowest));
  context.textBaseline = "alphabetic";
  context.strokeStyle = dark ? "#7fa8ff" : "#20508a";
  context.lineWidth = 1.2;
  context.beginPath();
  values.forEach((value, i) => (value > 0 ? context.lineTo(x(i), y(value)) : 0));
  context.stroke();
  if (!(here > 0)) return;
  context.strokeStyle = context.fillStyle = dark ? "#fbb24a" : "#d2434f";
  context.beginPath();
  context.moveTo(x(mark), top);
  context.lineTo(x(mark), bottom);
  context.stroke();
  context.beginPath();
  context.arc(x(mark), y(here), 3.5, 0, 7);
  context.fill();
}

const readable = (value) => (value >= 0.01 && value < 10000 ? String(Number(value.toPrecision(3))) : value.toExponential(1));

/** A name as long as fits. */
function shorten(context, name, width) {
  let text = name;
  while (text.length > 1 && context.measureText(text).width > width) text = `${text.slice(0, -2)}…`;
  return text;
}

/** Light text means a dark background. */
function isDark(colour) {
  const [red, green, blue] = colour.match(/[\d.]+/g).map(Number);
  return 0.3 * red + 0.6 * green + 0.1 * blue > 128;
}
