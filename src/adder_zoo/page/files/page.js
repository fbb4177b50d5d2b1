// The page: which network, what it sees, what it answers, what that costs, and what its first layers make of it.

const UNSURE = 0.6; // a smaller share of the best class is no answer
const SHOWN = 10; // classes
const element = (id) => document.getElementById(id);
const count = new Intl.NumberFormat("en");
const energy = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

const networks = embeddedNetworks();
const engines = new Map();
let network = networks[0];
let input = null; // the bytes that the network sees
let turn = 0; // counts choices, so that a slow one does not answer for a later one

const pad = new Pad(element("stage"), drawn);

function made(tag, text, attributes = {}) {
  const node = document.createElement(tag);
  if (text) node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function fail(text) {
  element("failure").textContent = text;
  element("failure").hidden = false;
}

function note(text) {
  element("input-note").textContent = text;
}

// ---- which network

function offerNetworks() {
  element("networks").hidden = networks.length < 2;
  networks.forEach((candidate, i) => {
    const label = made("label", "", { class: "choice" });
    const radio = made("input", "", { type: "radio", name: "network", id: `network-${i}` });
    radio.checked = i === 0;
    radio.addEventListener("change", () => choose(candidate));
    const text = made("span");
    text.append(made("b", candidate.draws ? "Digits" : "Pictures"), made("small", candidate.name));
    label.append(radio, text);
    element("networks").append(label);
  });
}

function choose(candidate) {
  network = candidate;
  input = null;
  turn += 1;
  const { draws } = network;
  element("input-title").textContent = draws ? "Draw a digit" : "Choose a picture";
  element("hint").textContent = draws ? "Draw here" : "Drop a picture here";
  const classes = network.classes.length <= 12 ? network.classes.join(", ") : `${network.classes.length} classes`;
  element("how").textContent = draws
    ? "With a mouse, a finger or a pen. With keys: arrows move the pen, Space puts it down and lifts it, Backspace takes " +
      "a line back, Delete clears."
    : `It knows: ${classes}. You can also drop or paste a picture. The middle of it is cut out.`;
  element("stage").setAttribute("role", draws ? "application" : "img");
  element("stage").tabIndex = draws ? 0 : -1;
  element("stage").setAttribute("aria-label", draws ? "Drawing pad" : "The chosen picture");
  element("undo").hidden = !draws;
  pad.allow(draws);
  note("");
  offerExamples();
  showCosts();
  makeInside();
  update();
}

function offerExamples() {
  const size = network.image[0] * network.image[1] * network.image[2];
  const all = bytesOf(network.examples);
  const buttons = Array.from({ length: all.length / size }, (_, i) => {
    const bytes = all.slice(i * size, (i + 1) * size);
    const button = made("button", "", { type: "button", "aria-label": `Example ${i + 1}` });
    const canvas = canvasOf(network.image[1], network.image[0]);
    paintBytes(canvas, bytes, network.image[2]);
    button.append(canvas);
    button.addEventListener("click", () => {
      pad.show(canvas);
      note("");
      see(bytes);
    });
    return button;
  });
  element("examples").replaceChildren(...buttons);
}

// ---- what it sees

function drawn() {
  note("");
  const points = pad.strokes.flat();
  if (!points.length) return see(null);
  const spans = [0, 1].map((axis) => points.map((p) => p[axis]));
  const span = Math.max(...spans.map((values) => Math.max(...values) - Math.min(...values)));
  if (span < 0.1) return see(null, "Too small to read. Draw larger.");
  return see(prepared(digitOfStrokes(pad.strokes), network).data);
}

async function take(file) {
  if (!file) return;
  turn += 1;
  const mine = turn;
  let canvas;
  try {
    canvas = await pictureOf(file);
  } catch {
    note(`${file.name || "This"} is not a picture that this browser can read.`);
    return;
  }
  if (mine !== turn) return;
  pad.show(canvas);
  let image = read(canvas, network.image[2]);
  let said = "";
  if (network.draws) ({ image, note: said } = digitOfPicture(image));
  note(said);
  see(image && prepared(image, network).data);
}

function see(bytes, text) {
  turn += 1;
  input = bytes;
  return update(text);
}

function clear() {
  pad.reset();
  note("");
  see(null);
}

// ---- what it answers

async function update(text) {
  const mine = turn;
  const current = network;
  element("hint").hidden = pad.strokes.length > 0 || pad.picture !== null;
  element("clear").disabled = element("hint").hidden === false;
  element("undo").disabled = !pad.strokes.length;
  showSeen();
  try {
    if (!engines.has(current)) engines.set(current, await engineOf(current));
  } catch (error) {
    fail(`This browser cannot run the network (${error.message}). It needs WebAssembly with SIMD: Chrome or Edge 97, ` +
      "Firefox 102, Safari 16.4, or newer.");
    return;
  }
  if (mine !== turn || current !== network) return;
  const answer = input ? engines.get(current)(input) : null;
  showVerdict(answer, text);
  showClasses(answer);
  showInside(answer);
  element("time").textContent = answer
    ? `${answer.milliseconds.toFixed(1)} ms in WebAssembly, in whole numbers from the pixels to the answer.` : "";
  document.body.dataset.answered = String(turn); // for programs that wait for the answer
}

function showSeen() {
  const canvas = element("seen");
  [canvas.height, canvas.width] = network.image;
  if (input) paintBytes(canvas, input, network.image[2]);
}

function showVerdict(answer, text) {
  const verdict = element("verdict");
  verdict.className = "";
  element("badge").textContent = "";
  if (!answer) {
    verdict.replaceChildren(made("small", text || (network.draws ? "Draw a digit, and it answers." :
      "Choose a picture, or take an example, and it answers.")));
    return;
  }
  const order = ordered(answer.shares);
  const [best, second] = order.map((k) => network.classes[k]);
  const share = answer.shares[order[0]];
  const unsure = share < UNSURE;
  element("badge").textContent = unsure ? "?" : best;
  verdict.classList.toggle("unsure", unsure);
  verdict.classList.toggle("short", best.length < 3);
  verdict.replaceChildren(made("b", best),
    made("small", unsure ? `Not sure: ${percent(share)}, and ${second} ${percent(answer.shares[order[1]])}.`
      : `${percent(share)} sure`));
}

function ordered(shares) {
  return shares.map((_, k) => k).sort((a, b) => shares[b] - shares[a]);
}

function percent(share) {
  if (share > 0.999) return "> 99.9 %";
  if (share < 0.001) return "< 0.1 %";
  return `${(share * 100).toFixed(share < 0.1 || share > 0.99 ? 1 : 0)} %`;
}

function showClasses(answer) {
  const all = network.classes.map((_, k) => k);
  const shown = all.length <= SHOWN ? all : answer ? ordered(answer.shares).slice(0, SHOWN) : all.slice(0, SHOWN);
  const best = answer ? ordered(answer.shares)[0] : -1;
  const rows = shown.map((k) => {
    const share = answer ? answer.shares[k] : 0;
    const row = made("tr", "", k === best ? { class: "best" } : {});
    const last = made("td", answer ? percent(share) : "–");
    if (answer) last.title = `integer logit ${answer.logits[k]}`;
    row.append(made("th", network.classes[k], { scope: "row" }), barCell(share), last);
    return row;
  });
  element("classes").querySelector("tbody").replaceChildren(...rows);
}

function barCell(share) {
  const cell = made("td", "", { "aria-hidden": "true" });
  cell.append(bar(share));
  return cell;
}

function bar(share) {
  const track = made("div", "", { class: "bar", "aria-hidden": "true" });
  const filled = made("i");
  filled.style.width = `${(share * 100).toFixed(2)}%`;
  track.append(filled);
  return track;
}

// ---- what it costs

function showCosts() {
  const { ours, twin } = network.costs;
  const rows = [["Multipli\u00adcations", "multiplications", "", count], ["Additions", "additions", "", count],
    ["Energy in float32", "fp32", " µJ", energy], ["Energy in 8 bits", "int8", " µJ", energy]];
  const body = rows.map(([title, key, unit, format]) => {
    const row = made("tr");
    row.append(made("th", title, { scope: "row" }));
    for (const cost of [ours, twin]) {
      const cell = made("td");
      cell.append(made("b", format.format(cost[key]) + unit), bar(cost[key] / Math.max(ours[key], twin[key], 1e-9)));
      row.append(cell);
    }
    return row;
  });
  element("costs").querySelector("tbody").replaceChildren(...body);
  element("cost-note").textContent = `Counted by adder_zoo.report for ${network.name}, without normalisation. Energy ` +
    "is that of the arithmetic alone in a 45 nm chip (Horowitz, ISSCC 2014; sums of 8 bits in 32); memory traffic is " +
    "left out. The processor before you multiplies as fast as it adds, so it saves nothing here: the saving needs " +
    "hardware made for it." + (network.multiplier_free ? " What runs on this page multiplies nowhere: " +
      (ours.multiplications ? "the products in the table, and all scales, are shifts and additions."
        : "scales, too, are shifts and additions.") : "");
}

// ---- inside

let maps = []; // [{name, channels, canvases}]

/** Filters of the first layer beside their maps, then maps of the layers that follow. */
function makeInside() {
  maps = [];
  const parts = network.tensors.map((tensor) => {
    const layer = network.layers.find((candidate) => candidate.tensor === tensor.name);
    const section = made("section");
    const filters = layer ? `${layer.shape[0]} filters, ` : "";
    const maps = `${tensor.shape[2]} maps of ${tensor.shape[0]} x ${tensor.shape[1]}`;
    section.append(made("h3", `${tensor.title}: ${filters}${maps}`));
    section.append(gridOf(tensor, layer));
    return section;
  });
  element("inside").replaceChildren(...parts);
  const first = network.layers[0];
  element("inside-note").textContent = (first && first.kind === "distance"
    ? "Above: a filter, which is a small picture. Below: where the image resembles it. A place is bright where the " +
      "differences between patch and filter are small."
    : "Above: a filter of the first layer, which still has products. Below: what it answers at each place. In the layers " +
      "that follow, a place is bright where patch and filter differ little.") +
    " After batch norm, shortcut and ReLU.";
}

function gridOf(tensor, layer) {
  const grid = made("div", "", { class: "maps" });
  const weights = layer ? Int16Array.from(new Int16Array(bytesOf(layer.weights).buffer)) : null;
  const canvases = Array.from({ length: tensor.shape[2] }, (_, k) => {
    const figure = made("figure");
    if (layer) figure.append(filterCanvas(layer, weights, k));
    const canvas = canvasOf(tensor.shape[1], tensor.shape[0], `${layer ? "Filter and map" : "Map"} ${k + 1}`);
    figure.append(canvas);
    grid.append(figure);
    return canvas;
  });
  maps.push({ name: tensor.name, canvases });
  return grid;
}

function showInside(answer) {
  for (const { name, canvases } of maps) {
    const scaled = answer ? stretched(answer.tensors.get(name)) : null;
    canvases.forEach((canvas, k) => {
      if (scaled) paintChannel(canvas, scaled, k, canvases.length);
      else canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    });
  }
}

// ---- events

function listen() {
  element("clear").addEventListener("click", clear);
  element("undo").addEventListener("click", () => pad.undo());
  element("file").addEventListener("change", (event) => {
    take(event.target.files[0]);
    event.target.value = ""; // the same file may be chosen again
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    element("drop").classList.add("dropping");
  });
  for (const name of ["dragleave", "drop"]) {
    document.addEventListener(name, () => element("drop").classList.remove("dropping"));
  }
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (file) take(file);
    else note("Drop the file of a picture.");
  });
  document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => pad.paint());
}

if (typeof WebAssembly === "undefined") {
  fail("This browser has no WebAssembly.");
} else {
  element("main").hidden = false;
  element("about").textContent = `Networks: ${networks.map((each) => each.name).join(", ")}.`;
  offerNetworks();
  listen();
  choose(network);
}
