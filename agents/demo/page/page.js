"use strict";

const GLIMPSE = "#e69f00", EARLIER = "#56b4e9";
const VIRIDIS = ("440154 47186a 472c7b 424085 3a528b 32628d 2c728e 26818e 20908c " +
  "1e9f88 28ae7f 3ebc73 5ec961 83d34b addc30 d7e219 fde724").split(" ").map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
const DECISION_MS = 800;

const $ = (id) => document.getElementById(id);
const say = (text) => ($("message").textContent = text);

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Is the command still running?");
  }
  const content = await response.json();
  if (!response.ok) throw new Error(content.error);
  return content;
}

/** Run work that may fail, and show why it failed. */
async function attempt(work) {
  say("");
  try {
    await work();
  } catch (error) {
    say(error.message);
  }
}

// --- the image: grey or RGB bytes, and how they change ------------------------------------------------------------

const pad = $("pad"), onPad = pad.getContext("2d");
const brush = document.createElement("canvas");
const onBrush = brush.getContext("2d", { willReadFrequently: true });
let shape = [100, 100, 1]; // of the image: height, width, channels
const blank = () => new Uint8ClampedArray(shape[0] * shape[1] * shape[2]);
let pixels = blank();
let earlier = []; // images to go back to, with their labels
let stroke = null; // points [x, y] of the one that is drawn
let before = pixels; // the image without it

function imageData(bytes, [height, width, channels]) {
  const data = new ImageData(width, height), last = channels - 1;
  for (let i = 0; i < height * width; i++) {
    const at = channels * i;
    data.data.set([bytes[at], bytes[at + Math.min(1, last)], bytes[at + last], 255], 4 * i);
  }
  return data;
}

function show(bytes) {
  pixels = bytes;
  onPad.putImageData(imageData(bytes, shape), 0, 0);
}

/** A blank image of another shape, with nothing to undo. */
function reshape(to) {
  shape = to;
  for (const canvas of [pad, brush]) Object.assign(canvas, { width: shape[1], height: shape[0] });
  pad.style.aspectRatio = `${shape[1]} / ${shape[0]}`;
  pad.ariaLabel = `The image, ${shape[0]} by ${shape[1]} pixels. Draw on it with a mouse, finger or stylus.`;
  earlier = [];
  $("undo").disabled = true;
  $("labels").value = "";
  filled = false;
  show(blank());
}

function remember() {
  earlier = [...earlier.slice(-49), { pixels, labels: $("labels").value }];
  $("undo").disabled = false;
}

function replace(bytes, labels) {
  remember();
  show(bytes);
  $("labels").value = labels;
}

/** Soft edges, as those of the enlarged digits that the agents were trained on: a binomial filter over 3 x 3 px. */
function soften(grey) {
  const [height, width] = shape;
  const pass = (from, step, side, along) =>
    from.map((value, i) => {
      const at = along(i);
      return ((at > 0 ? from[i - step] : 0) + 2 * value + (at < side - 1 ? from[i + step] : 0)) / 4;
    });
  return pass(pass(Float32Array.from(grey), 1, width, (i) => i % width), width, height, (i) => Math.floor(i / width));
}

function drawStroke() {
  onBrush.fillStyle = "#000";
  onBrush.fillRect(0, 0, shape[1], shape[0]);
  onBrush.strokeStyle = "#fff";
  onBrush.lineWidth = Number($("width").value);
  onBrush.lineCap = onBrush.lineJoin = "round";
  onBrush.beginPath();
  onBrush.moveTo(...stroke[0]);
  for (let i = 1; i < stroke.length - 1; i++) {
    const [x, y] = stroke[i], [nextX, nextY] = stroke[i + 1];
    onBrush.quadraticCurveTo(x, y, (x + nextX) / 2, (y + nextY) / 2);
  }
  onBrush.lineTo(...stroke[stroke.length - 1]);
  onBrush.stroke();
  const ink = soften(onBrush.getImageData(0, 0, shape[1], shape[0]).data.filter((_, i) => i % 4 === 0));
  const erases = document.querySelector("[name=tool]:checked").value === "eraser";
  const inked = (i) => ink[Math.floor(i / shape[2])];
  show(before.map((value, i) => (erases ? Math.min(value, 255 - inked(i)) : Math.max(value, inked(i)))));
}

function point(event) {
  const box = pad.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * shape[1], ((event.clientY - box.top) / box.height) * shape[0]];
}

pad.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || stroke) return;
  pad.setPointerCapture(event.pointerId);
  remember();
  $("labels").value = filled ? "" : $("labels").value; // a test canvas's labels no longer hold
  filled = false;
  before = pixels;
  stroke = [point(event)];
  drawStroke();
});
pad.addEventListener("pointermove", (event) => {
  if (!stroke || !pad.hasPointerCapture(event.pointerId)) return;
  stroke.push(...(event.getCoalescedEvents?.() ?? []).concat(event).map(point));
  drawStroke();
});
for (const end of ["pointerup", "pointercancel"]) pad.addEventListener(end, () => (stroke = null));

$("width").addEventListener("input", () => ($("width-shown").textContent = `${$("width").value} px`));
$("undo").addEventListener("click", () => {
  const last = earlier.pop();
  show(last.pixels);
  $("labels").value = last.labels;
  filled = false;
  $("undo").disabled = !earlier.length;
});
$("clear").addEventListener("click", () => replace(blank(), ""));

const decoded = (text) => Uint8ClampedArray.from(atob(text), (letter) => letter.charCodeAt(0));
const encoded = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));

let filled = false; // whether the labels are those of a test canvas
$("labels").addEventListener("input", () => (filled = false));

const SOURCES = {
  mnist: "These canvases hold MNIST's test digits.",
  digits: "MNIST is not on this machine. These are scikit-learn's handwritten digits, on which the agents make more errors.",
  custom: "These are test images of the folder that the agent was trained on.",
};

/** Ask for a test image, and say what they are. */
async function canvasOf(index) {
  const agent = $("agent").value;
  const canvas = await ask(`/api/canvas?index=${encodeURIComponent(index)}&agent=${encodeURIComponent(agent)}`);
  if (agent !== $("agent").value) throw new Error("The agent was changed.");
  $("source").textContent = SOURCES[canvas.source] ?? `These are test images of ${canvas.source}.`;
  $("index").max = canvas.size - 1;
  return canvas;
}

const pick = (index) =>
  attempt(async () => {
    const canvas = await canvasOf(index);
    const names = options.agents[$("agent").value].class_names;
    replace(decoded(canvas.image), names.length ? canvas.labels.map((label) => names[label]).join(", ") : canvas.labels.join(" "));
    filled = true;
  });
$("pick").addEventListener("submit", (event) => {
  event.preventDefault();
  pick($("index").value);
});
$("random").addEventListener("click", () => {
  $("index").value = Math.floor(Math.random() * (Number($("index").max) + 1));
  pick($("index").value);
});

const upload = () =>
  attempt(async () => {
    const [file] = $("file").files;
    if (!file) return;
    if (file.size > options.most_upload_bytes)
      throw new Error(`${file.name} is too large: at most ${options.most_upload_bytes / 2 ** 20} MiB. Make it smaller.`);
    const wish = `invert=${$("invert").checked ? 1 : 0}&agent=${encodeURIComponent($("agent").value)}`;
    const answer = await ask(`/api/upload?${wish}`, { method: "POST", body: file });
    replace(decoded(answer.image), "");
    $("file-shown").textContent = `${file.name}, ${$("invert").checked ? "inverted" : "as it is"}.`;
  });
$("file").addEventListener("change", upload);
$("invert").addEventListener("change", upload);

// --- what can be chosen -------------------------------------------------------------------------------------------

let options = null;

function fill(select, names) {
  select.replaceChildren(...names.map((name) => new Option(name, name)));
}

/** Set the image's shape and the rules to those of the chosen agent's training. */
function asTrained() {
  const { glimpses, update, saliency, image_shape, digits } = options.agents[$("agent").value];
  if (String(image_shape) !== String(shape)) {
    reshape(image_shape);
    upload();
  }
  for (const part of document.querySelectorAll(".of-digits")) part.hidden = !digits;
  for (const part of document.querySelectorAll(".of-others")) part.hidden = digits;
  $("pad-frame").classList.toggle("quarters", digits);
  $("fitted").textContent = `${image_shape[0]} by ${image_shape[1]} pixels`;
  $("source").textContent = "Looking for the test images…";
  canvasOf(0).catch((error) => ($("source").textContent = error.message)); // may take a while, where they are looked for
  $("glimpses").value = glimpses;
  $("update").value = update;
  if (saliency) $("saliency").value = saliency;
  $("glimpses-trained").textContent = `It was trained with ${glimpses}. With another number it makes more errors.`;
  explain();
}

function explain() {
  $("update-words").textContent = `After each label: ${options.updates[$("update").value]}.`;
  $("saliency-words").textContent = `${options.saliency[$("saliency").value]}.`.replace(/^./, (letter) => letter.toUpperCase());
  $("seed").disabled = $("choice").value === "greedy";
}

$("agent").addEventListener("change", asTrained);
for (const id of ["update", "saliency", "choice"]) $(id).addEventListener("change", explain);

attempt(async () => {
  options = await ask("/api/options");
  fill($("agent"), Object.keys(options.agents));
  fill($("glimpses"), [...Array(options.most_glimpses + 1).keys()]);
  fill($("update"), Object.keys(options.updates));
  fill($("saliency"), Object.keys(options.saliency));
  $("agent").value = options.chosen;
  asTrained();
  $("go").disabled = false;
});

function trueLabels() {
  const names = options.agents[$("agent").value].class_names, text = $("labels").value.trim();
  if (!text) return null;
  const number = (word) => (/^\d+$/.test(word) ? Number(word) : names.indexOf(word));
  // names may hold spaces; then commas stand between them
  const words = text.includes(",") ? text.split(",").map((word) => word.trim()).filter(Boolean) : text.split(/\s+/);
  const found = number(text) >= 0 ? [text] : words;
  const wrong = found.find((word) => number(word) < 0);
  const expected = names.length ? "names or numbers with commas" : "numbers with spaces";
  if (wrong !== undefined) throw new Error(`Expected true labels as ${expected} between them; got “${wrong}”.`);
  return found.map(number);
}

$("go").addEventListener("click", () =>
  attempt(async () => {
    const wish = {
      image: encoded(pixels),
      labels: trueLabels(),
      agent: $("agent").value,
      glimpses: Number($("glimpses").value),
      update: $("update").value,
      saliency: $("saliency").value,
      deterministic: $("choice").value === "greedy",
      seed: Number($("seed").value),
    };
    $("go").disabled = true;
    try {
      const headers = { "Content-Type": "application/json" };
      start(await ask("/api/play", { method: "POST", headers, body: JSON.stringify(wish) }));
    } finally {
      $("go").disabled = false;
    }
  }),
);

// --- the trace, decision by decision ------------------------------------------------------------------------------

let trace = null, picture = null, at = 0, timer = null;

function start(found) {
  trace = found;
  const shown = [trace.image.length, trace.image[0].length, trace.image[0][0].length ?? 1];
  picture = Object.assign(document.createElement("canvas"), { width: shown[1], height: shown[0] });
  picture.getContext("2d").putImageData(imageData(Uint8ClampedArray.from(trace.image.flat(2)), shown), 0, 0);
  const [rows, cols] = trace.map_size, [, [rowStride, colStride]] = trace.grid;
  for (const name of ["image", "saliency", "priority"]) {
    const view = $(`view-${name}`);
    view.height = Math.round((view.width * rows * rowStride) / (cols * colStride));
    view.style.aspectRatio = `${view.width} / ${view.height}`;
  }
  $("bars").classList.toggle("named", trace.class_names.length > 0);
  $("step").max = trace.phase.length - 1;
  $("thinking").hidden = false;
  go(0);
  play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
  if (matchMedia("(max-width: 899px)").matches) $("thinking").scrollIntoView();
}

function go(to) {
  at = Math.max(0, Math.min(trace.phase.length - 1, to));
  $("step").value = at;
  draw();
}

function play(on) {
  clearInterval(timer);
  timer = on ? setInterval(() => (at < trace.phase.length - 1 ? go(at + 1) : play(false)), DECISION_MS) : null;
  $("play").textContent = on ? "❚❚" : "▶";
  $("play").setAttribute("aria-label", on ? "Pause" : "Play");
}

function step(by) {
  play(false);
  go(at + by);
}

$("play").addEventListener("click", () => {
  if (!timer && at === trace.phase.length - 1) go(0);
  play(!timer);
});
$("back").addEventListener("click", () => step(-1));
$("forth").addEventListener("click", () => step(1));
$("step").addEventListener("input", () => {
  play(false);
  go(Number($("step").value));
});
document.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
  if (!trace || !by || event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select")) return;
  event.preventDefault();
  step(by);
});

const labelName = (label) => (label === trace.num_classes ? "stop" : (trace.class_names[label] ?? String(label)));
const labelNames = (labels) => labels.map(labelName).join(", ");
const percent = (p) => (p === null ? "" : `, ${(100 * p).toFixed(p < 0.995 && p > 0.0995 ? 0 : 1).replace(".0", "")} %`);
const place = (cell) => `row ${Math.floor(cell / trace.map_size[1]) + 1}, column ${(cell % trace.map_size[1]) + 1}`;
const probability = (n) => (trace.log_prob[n] === null ? null : Math.exp(trace.log_prob[n]));

/** The mask that a decision lays, and of a mask that was drawn the upper level's numbers. */
function mask(n) {
  const about = trace.attended[n] < 0 ? "" : ` about ${place(trace.attended[n])}`;
  const numbers = [["log-probability", trace.log_prob[n]], ["value", trace.value[n]], ["entropy", trace.entropy[n]]]
    .filter(([, number]) => number !== null).map(([name, number]) => `${name} ${number.toFixed(2)}`);
  if (!about && !numbers.length) return "lays its mask of attention";
  return `draws its mask of attention${about}${numbers.length ? ` (${numbers.join(", ")})` : ""}`;
}

function inWords(n) {
  const phase = trace.phase[n], which = `Meta-step ${trace.meta_step[n] + 1}: `;
  if (phase === 0) return `${which}the agent ${mask(n)}.`;
  if (phase <= trace.glimpses)
    return `${which}glimpse ${phase} of ${trace.glimpses}, at ${place(trace.location[n])}${percent(probability(n))}.`;
  const stops = trace.label[n] === trace.num_classes;
  return `${which}the agent ${stops ? "says stop" : `names ${labelName(trace.label[n])}`}${percent(probability(n))}.`;
}

/** The decisions up to this one that satisfy a condition. */
const sofar = (condition) => [...Array(at + 1).keys()].filter(condition);

function draw() {
  const words = inWords(at);
  $("now").textContent = words;
  $("step").setAttribute("aria-valuetext", words);
  $("place").textContent = `${at + 1} / ${trace.phase.length}`;
  const now = trace.meta_step[at];
  const looks = sofar((n) => trace.location[n] >= 0 && trace.meta_step[n] === now);
  const past = sofar((n) => trace.location[n] >= 0 && trace.meta_step[n] < now);

  const image = $("view-image").getContext("2d");
  image.imageSmoothingEnabled = false;
  image.clearRect(0, 0, image.canvas.width, image.canvas.height);
  image.drawImage(picture, ...placed(image, trace.image[0].length, trace.image.length));
  drawGrid(image);
  for (const n of past) drawCell(image, trace.location[n], EARLIER, 2, 2, beside(image, n));
  drawGlimpses(image, looks, beside);
  image.canvas.ariaLabel = looks.length
    ? `The image. Glimpses at ${looks.map((n) => place(trace.location[n])).join("; ")}.`
    : "The image. No glimpse in this meta-step yet.";

  const saliency = $("view-saliency").getContext("2d");
  drawMap(saliency, trace.saliency[at]);
  drawContours(saliency, trace.mask[at]);
  for (const n of sofar((n) => trace.attended[n] >= 0 && trace.meta_step[n] === now)) drawCell(saliency, trace.attended[n], GLIMPSE, 3);
  saliency.canvas.ariaLabel = `Saliency map, highest at ${place(highest(trace.saliency[at]))}; mask, highest at ${place(highest(trace.mask[at]))}.`;
  const priority = $("view-priority").getContext("2d");
  drawMap(priority, trace.priority[at]);
  drawGlimpses(priority, looks);
  priority.canvas.ariaLabel = `Priority map, highest at ${place(highest(trace.priority[at]))}.`;

  drawBars();
  drawNamed();
}

function element(tag, className, text) {
  return Object.assign(document.createElement(tag), { className, textContent: text });
}

function drawBars() {
  const probabilities = trace.label_probs[at];
  $("bars").replaceChildren(
    ...probabilities.map((p, label) => {
      const row = element("li", label === trace.label[at] ? "chosen" : "", "");
      const track = element("span", "track", ""), fill = element("span", "fill", "");
      fill.style.width = `${100 * (p ?? 0)}%`;
      track.append(fill);
      row.append(element("span", "label", labelName(label)), track, element("span", "value", p === null ? "–" : p.toFixed(2)));
      return row;
    }),
  );
}

function drawNamed() {
  const names = sofar((n) => trace.label[n] >= 0);
  $("named").replaceChildren(
    ...names.map((n) => {
      const verdict = trace.reward === null ? "" : trace.reward[n] > 0 ? "right" : "wrong";
      const mark = { right: " ✓", wrong: " ✗" }[verdict] ?? "";
      const item = element("li", verdict, labelName(trace.label[n]) + mark);
      item.dataset.label = labelName(trace.label[n]);
      return item;
    }),
  );
  const done = at === trace.phase.length - 1, exact = trace.exact_match;
  $("result").className = !done || exact === null ? "" : exact ? "right" : "wrong";
  const ended = trace.truncated ? " The episode was cut off, because the agent may name no more labels." : "";
  if (!done) $("result").textContent = "";
  else if (exact === null) $("result").textContent = `It named {${labelNames(trace.named)}}.${ended}`;
  else $("result").textContent = `It named {${labelNames(trace.named)}}, true is {${labelNames(trace.labels)}}: ${exact ? "all right ✓" : "not all right ✗"}.${ended}`;
}

// --- maps: the H x W cells fill a panel, and the image lies behind them where they look ------------------------------

/** Where an image of width x height px lies on a panel that its cells fill: left, top, width, height. */
function placed(context, width, height) {
  const [[firstRow, firstCol], [rowStride, colStride]] = trace.grid, [rows, cols] = trace.map_size;
  const down = context.canvas.height / (rows * rowStride), across = context.canvas.width / (cols * colStride);
  return [(colStride / 2 - firstCol) * across, (rowStride / 2 - firstRow) * down, width * across, height * down];
}

const highest = (map) => map.flat().reduce((best, value, i, all) => (value > all[best] ? i : best), 0);

function colour(value) {
  const x = Math.min(1, Math.max(0, value)) * (VIRIDIS.length - 1), low = Math.min(Math.floor(x), VIRIDIS.length - 2);
  return `rgb(${VIRIDIS[low].map((part, i) => Math.round(part + (x - low) * (VIRIDIS[low + 1][i] - part))).join(" ")})`;
}

function box(context, cell) {
  const [rows, cols] = trace.map_size, { width, height } = context.canvas;
  return [((cell % cols) * width) / cols, (Math.floor(cell / cols) * height) / rows, width / cols, height / rows];
}

function drawMap(context, map) {
  map.flat().forEach((value, cell) => {
    const [x, y, width, height] = box(context, cell);
    context.fillStyle = colour(value);
    context.fillRect(Math.floor(x), Math.floor(y), Math.ceil(width) + 1, Math.ceil(height) + 1);
  });
}

function drawGrid(context) {
  for (let cell = 0; cell < trace.map_size[0] * trace.map_size[1]; cell++) drawCell(context, cell, "#ffffff24", 1, 0);
}

function drawCell(context, cell, style, width, inset = 2, [across, down] = [0, 0]) {
  const [x, y, w, h] = box(context, cell);
  context.strokeStyle = style;
  context.lineWidth = width;
  context.strokeRect(x + across + inset, y + down + inset, w - 2 * inset, h - 2 * inset);
}

/** How far from its cell's centre the glimpse n looks, across and down, in px of the canvas. */
function beside(context, n) {
  const [[firstRow, firstCol], [rowStride, colStride]] = trace.grid, [rows, cols] = trace.map_size;
  const [row, col] = trace.location_px[n], cell = trace.location[n];
  const across = (col - firstCol) / colStride - (cell % cols), down = (row - firstRow) / rowStride - Math.floor(cell / cols);
  return [(across * context.canvas.width) / cols, (down * context.canvas.height) / rows];
}

/** The cells that were looked at, each moved by what `moved` says of its first glimpse. */
function drawGlimpses(context, looks, moved = () => [0, 0]) {
  const numbers = new Map(); // of each cell
  for (const n of looks) numbers.set(trace.location[n], [...(numbers.get(trace.location[n]) ?? []), trace.phase[n]]);
  context.font = "700 20px system-ui, sans-serif";
  context.textBaseline = "middle";
  for (const [cell, those] of numbers) {
    const by = moved(context, looks.find((n) => trace.location[n] === cell));
    drawCell(context, cell, "#000", 8, 3, by);
    drawCell(context, cell, GLIMPSE, 4, 3, by);
    const [left, top] = box(context, cell), [x, y] = [left + by[0], top + by[1]], text = those.join(" ");
    context.fillStyle = GLIMPSE;
    context.fillRect(x + 1, y + 1, context.measureText(text).width + 10, 25);
    context.fillStyle = "#000";
    context.fillText(text, x + 6, y + 15);
  }
}

/** Lines at shares of the map's maximum, by marching squares on the map interpolated between the cells' centres. */
function drawContours(context, map) {
  const [rows, cols] = trace.map_size, fine = 8, { width, height } = context.canvas;
  const peak = Math.max(...map.flat());
  if (!(peak > 0)) return;
  const value = (row, col) => {
    const r = Math.min(rows - 1, Math.max(0, row / fine - 0.5)), c = Math.min(cols - 1, Math.max(0, col / fine - 0.5));
    const top = Math.floor(r), left = Math.floor(c), below = Math.min(top + 1, rows - 1), right = Math.min(left + 1, cols - 1);
    const [a, b, d, e] = [map[top][left], map[top][right], map[below][left], map[below][right]];
    return (a + (b - a) * (c - left)) * (1 - r + top) + (d + (e - d) * (c - left)) * (r - top);
  };
  const lines = new Path2D();
  const grid = Array.from({ length: rows * fine + 1 }, (_, r) => Array.from({ length: cols * fine + 1 }, (_, c) => value(r, c)));
  for (const level of [0.25, 0.5, 0.75].map((share) => share * peak))
    for (let r = 0; r < rows * fine; r++)
      for (let c = 0; c < cols * fine; c++) {
        const corners = [[r, c], [r, c + 1], [r + 1, c + 1], [r + 1, c]], ends = [];
        corners.forEach(([r0, c0], i) => {
          const [r1, c1] = corners[(i + 1) % 4], from = grid[r0][c0] - level, to = grid[r1][c1] - level;
          if (from < 0 === to < 0) return;
          const share = from / (from - to);
          ends.push([((c0 + share * (c1 - c0)) * width) / cols / fine, ((r0 + share * (r1 - r0)) * height) / rows / fine]);
        });
        for (let i = 0; i + 1 < ends.length; i += 2) {
          lines.moveTo(...ends[i]);
          lines.lineTo(...ends[i + 1]);
        }
      }
  context.lineCap = "round";
  for (const [style, lineWidth] of [["#000", 5], ["#fff", 2.5]]) {
    context.strokeStyle = style;
    context.lineWidth = lineWidth;
    context.stroke(lines);
  }
}

reshape(shape);
