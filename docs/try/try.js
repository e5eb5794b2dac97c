// The page: takes image files, has worker.js score them, and lists them, best first.

const NO_MODEL =
  "There is no model beside this page. `python tools/make_browser_page.py` puts page, model and runtime into one folder; " +
  "open that folder over http, for example with `python -m http.server`.";

const status = document.querySelector("#status");
const results = document.querySelector("#results");
const chooser = document.querySelector("#files");
const entries = [];
let model = null;

function say(text, problem = false) {
  status.textContent = text;
  status.classList.toggle("problem", problem);
}

// ---- what a score means, by what model.json says

function band(score) {
  return model.bands[model.band_thresholds.filter((limit) => score >= limit).length];
}

/** Percentage of a population's images that score lower, linear between its 101 quantiles. */
function percentile(score, quantiles) {
  const above = quantiles.findIndex((value) => value > score);
  if (above === 0) return 0;
  if (above < 0) return 100;
  const low = quantiles[above - 1];
  return above - 1 + (score - low) / (quantiles[above] - low);
}

function note(score) {
  if (score === Math.fround(model.no_content_score)) return "no content";
  const shares = model.populations.map(({ name, quantiles }) => `${percentile(score, quantiles).toFixed(0)} % of ${name}`);
  return shares.length ? `better than ${shares.join(", ")}` : "";
}

// ---- the list

function element(kind, className, text = "") {
  const made = document.createElement(kind);
  made.className = className;
  made.textContent = text;
  return made;
}

function draw(entry) {
  const { score, error, name } = entry;
  const line = element("li", error ? "failed" : "");
  const image = element("img", "thumbnail");
  if (!error) image.src = entry.url;
  image.alt = "";
  const body = element("div", "");
  const value = element("div", "");
  if (error) {
    value.append(element("span", "note", `not scored: ${error}`));
  } else {
    value.append(
      element("span", "score", score.toFixed(4)),
      element("span", "band", band(score)),
      element("span", "note", note(score)),
    );
    line.dataset.score = score;
    line.dataset.band = band(score);
  }
  body.append(value);
  if (!error) {
    const [low, high] = model.score_range;
    const bar = element("div", "bar");
    bar.setAttribute("role", "meter");
    bar.setAttribute("aria-label", `score of ${name}`);
    bar.setAttribute("aria-valuemin", low);
    bar.setAttribute("aria-valuemax", high);
    bar.setAttribute("aria-valuenow", score.toFixed(4));
    bar.append(document.createElement("div"));
    bar.firstChild.style.width = `${Math.min(100, Math.max(0, (100 * (score - low)) / (high - low)))}%`;
    body.append(bar);
  }
  body.append(element("div", "name", error ? name : `${name}, ${entry.width} × ${entry.height}`));
  line.append(image, body);
  return line;
}

function show() {
  const done = entries.filter((entry) => "score" in entry).sort((a, b) => b.score - a.score);
  const failed = entries.filter((entry) => entry.error);
  results.replaceChildren(...done.map(draw), ...failed.map(draw));
  const waiting = entries.length - done.length - failed.length;
  if (waiting) say(`Scoring: ${done.length + failed.length} of ${entries.length} done…`);
  else if (entries.length) {
    say(`${done.length} scored, best first${failed.length ? `; ${failed.length} could not be scored` : ""}.`);
  }
}

// ---- the model, in a worker of its own

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });

function take(files) {
  if (!model) return;
  for (const file of files) {
    entries.push({ name: file.name, url: URL.createObjectURL(file) });
    worker.postMessage({ id: entries.length - 1, file });
  }
  show();
}

worker.onerror = (event) => {
  event.preventDefault();
  say(NO_MODEL, true);
};
worker.onmessage = ({ data }) => {
  if (data.id !== undefined) {
    Object.assign(entries[data.id], data);
    show();
  } else if (data.error) {
    model = null;
    say(`The model could not be loaded: ${data.error}. ${NO_MODEL}`, true);
  } else {
    document.body.dataset.ready = data.threads;
    say("Ready.");
  }
};

async function start() {
  const reply = await fetch("model.json");
  if (!reply.ok) throw new Error(reply.status);
  model = await reply.json();
  document.querySelector("#about").textContent =
    `Model ${model.name} (${model.licence}), ${model.precision}, crops: ${model.coverage}.`;
  document.querySelector("#about").hidden = false;
  worker.postMessage({ model: new URL(model.file, location.href).href });
}

start().catch(() => {
  model = null;
  say(NO_MODEL, true);
});

// ---- three ways to give it images

document.querySelector("#choose").addEventListener("click", () => chooser.click());
chooser.addEventListener("change", () => {
  take(chooser.files);
  chooser.value = ""; // the same file may be chosen again
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  take(event.dataTransfer.files);
});
addEventListener("paste", (event) => take(event.clipboardData.files));
