// Loads model.onnx and model.json from the folder that ?model= names (default: model), and labels what is dropped here,
// or the image that ?image= names.
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
import {inputOf} from "./pixels.js";

const TOP = 10, DATA = "model.onnx.data";  // where the weights lie of a model above 1.5 GB
const $ = id => document.getElementById(id);
const asked = new URLSearchParams(location.search);
const folder = (asked.get("model") ?? "model").replace(/\/$/, "");
let turn = 0, model;

async function got(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path} is not there (${answer.status}); \`mmrl export --out ${folder}\` writes the model`);
  return answer;
}

async function load() {
  ort.env.wasm.numThreads = 1;  // more need a page with the headers of cross-origin isolation
  const card = await (await got(`${folder}/model.json`)).json();
  const graph = new Uint8Array(await (await got(`${folder}/model.onnx`)).arrayBuffer());
  const externalData = DATA in card.files ? [{path: DATA, data: `${folder}/${DATA}`}] : [];
  return {card, session: await ort.InferenceSession.create(graph, {executionProviders: ["wasm"], externalData})};
}

// The image as a person sees it: its first frame, upright, without its colour profile, on the background.
async function pixelsOf(card, file) {
  const bitmap = await createImageBitmap(file, {imageOrientation: "from-image", colorSpaceConversion: "none"});
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), context = canvas.getContext("2d", {willReadFrequently: true});
  context.fillStyle = `rgb(${card.decoding.background})`;
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

// Name -> probability, the likeliest first. Two classes may share a name.
async function probabilitiesOf({card, session}, file) {
  const size = card.image_size, image = await pixelsOf(card, file);
  const images = new ort.Tensor("float32", inputOf(card, image), [1, 3, size, size]);
  const {probabilities} = await session.run({images}, ["probabilities"]), found = new Map();
  card.class_names.forEach((name, column) => found.set(name, (found.get(name) ?? 0) + probabilities.data[column]));
  return [...found].sort((one, other) => other[1] - one[1]);
}

function row([name, probability]) {
  const item = document.createElement("li"), [left, right] = [name, `${(100 * probability).toFixed(1)} %`].map(text => {
    const part = document.createElement("span");
    part.textContent = text;
    return part;
  });
  item.dataset.probability = probability;
  item.style.background = `linear-gradient(90deg, #5b86e555 ${100 * probability}%, transparent 0)`;
  item.append(left, right);
  return item;
}

function show(state, label, note, rows = []) {
  $("label").textContent = label;
  $("note").textContent = note;
  $("classes").replaceChildren(...rows);
  document.body.dataset.state = state;
}

async function label(file) {
  if (!file) return;
  const mine = ++turn;
  URL.revokeObjectURL($("shown").src);
  $("shown").src = URL.createObjectURL(file);
  $("shown").hidden = !($("invite").hidden = true);
  show("busy", "", "looking …");
  try {
    const found = await probabilitiesOf(await model, file);
    if (mine === turn) show("labelled", found[0][0], "the likeliest classes:", found.slice(0, TOP).map(row));
  } catch (error) {
    if (mine === turn) show("failed", "", error.name === "InvalidStateError" ? "this browser cannot read that as an image; try a JPEG or PNG" : error.message);
  }
}

async function begin() {
  try {
    const {card} = await (model = load());
    if (turn === 0) show("ready", "", `knows ${card.class_names.length} classes: ${card.class_names.slice(0, TOP).join(", ")}${card.class_names.length > TOP ? " …" : ""}`);
    if (asked.has("image")) await label(await (await got(asked.get("image"))).blob());
  } catch (error) {
    show("failed", "", error.message);
  }
}

$("file").addEventListener("change", event => { label(event.target.files[0]); event.target.value = ""; });  // so that the same may be chosen again
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) document.addEventListener(kind, event => {
  event.preventDefault();
  $("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
  if (kind === "drop") label(event.dataTransfer.files[0]);
});
begin();
