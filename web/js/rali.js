// Shows on RALI nodes what the last run reported of them, in both of ComfyUI's node renderers.
// Results are the page's state, like the images of Preview Image: no workflow, copy or undo step holds one.
import { app } from "../../../scripts/app.js";
import { MINIMUM_HEIGHT, draw, makeBox, shortText } from "./panel.js";
import { findInHistory, graphChanged, isCurrent, lastRun, listen, locatorOf, rootGraph } from "./runs.js";
import { choice, say } from "./texts.js";

const OLD_PROPERTY = "rali_scores"; // where version 0.1 kept results
const WITHOUT_PANEL = new Set(["RALI_LoadModel", "RALI_RetryStart", "RALI_Guidance"]);
const NEVER = 2;
const BYPASS = 4;

const panels = new Map(); // node: what is drawn in it
let restored = new Map(); // locator: results from the server's history, for the graph on the canvas

const isOurs = (node) => (node?.comfyClass ?? node?.type ?? "").startsWith("RALI_");
const needsInput = (node) => node.inputs?.find((input) => ["images", "score", "scores_a", "latent_image", "frames", "video"].includes(input.name));

function resultsOf(node) {
  const locator = locatorOf(node);
  const reported = app.nodeOutputs?.[locator]?.rali ?? restored.get(locator) ?? [];
  return reported.filter((each) => Array.isArray(each?.scores));
}

function isOutputNode(node) {
  return Boolean(node.constructor?.nodeData?.output_node);
}

// Why there is nothing to show before a run.
function advice(node) {
  const images = needsInput(node);
  const others = node.inputs?.some((input) => ["score", "scores"].includes(input.name) && input.link != null);
  if (images && images.link == null && !others) return say("unconnected", { input: images.label ?? images.localized_name ?? images.name });
  const used = node.outputs?.some((output) => output.links?.length);
  return !isOutputNode(node) && !used ? say("noOutput") : say("none");
}

function working({ progress, tally }, node) {
  if (tally) {
    const values = { ...tally, best: tally.best?.toFixed?.(3) };
    return say(tally.best === undefined || tally.best === null ? "firstTry" : "tally", values);
  }
  const [done, of] = progress ?? [0, 0];
  if (!(of > 1)) return say("working");
  return node.comfyClass === "RALI_Score" || of < 1000
    ? say("progress", { done, of })
    : say("percent", { percent: Math.floor((100 * done) / of) });
}

// The current state of a node's results.
function stateOf(node, results) {
  if (node.mode === BYPASS) return { name: "bypassed", text: say("bypassed"), hidden: true };
  if (node.mode === NEVER) return { name: "muted", text: say("muted"), hidden: true };
  const run = lastRun(locatorOf(node));
  if (run?.executing) return { name: "working", text: working(run, node), tally: run.tally };
  if (run && !run.reported) {
    if (!run.ending) return { name: "waiting", text: say("waiting") };
    const name = run.ending === "success" ? "skipped" : run.ending;
    const unused = name === "skipped" && !isOutputNode(node) && !node.outputs?.some((output) => output.links?.length);
    return { name, text: unused ? advice(node) : say(results.length ? name : `${name}None`) };
  }
  if (!results.length) return { name: "none", text: advice(node) };
  const current = results.map((each) => isCurrent(locatorOf(node), each));
  if (current.includes(false)) return { name: "changed", text: say("changed") };
  if (current.includes(null)) return { name: "earlier", text: say("earlier") };
  return { name: "current", text: "", current: true };
}

function refresh(node) {
  const panel = panels.get(node);
  if (!panel) return;
  const results = resultsOf(node);
  const state = stateOf(node, results);
  const shown = state.hidden ? [] : results;
  const drawn = JSON.stringify([state, shown.map(({ id, note, scores }) => [id, note, id ? 0 : scores]), say("none")]);
  if (drawn !== panel.drawn) {
    panel.drawn = drawn;
    draw(panel.box, state, shown);
  }
  panel.short = state.current ? results.map(shortText).filter(Boolean).join(", ") : "";
  showInTitle(node, node.flags?.collapsed ? panel.short : "");
}

// ---- a collapsed node, and a subgraph's, has the score in its title, which is drawn and not stored

const titles = new WeakMap();

function showInTitle(node, score) {
  let own = titles.get(node);
  if (!own) {
    if (!score) return;
    own = { title: node.title, shown: node.title, score: "" };
    titles.set(node, own);
    const getTitle = node.getTitle;
    node.getTitle = function () {
      const title = getTitle.apply(this, arguments);
      return own.score ? `${own.score} · ${title}` : title; // first: a narrow node cuts the rest
    };
  }
  // The Vue renderer's title field offers the shown title: that must not become the node's name.
  if (own.title !== node.title && node.title === own.shown) node.title = own.title;
  own.title = node.title;
  own.score = score;
  const before = own.shown;
  own.shown = node.getTitle();
  if (own.shown === before && !score) return;
  // The Vue renderer does not ask for titles: it is notified.
  node.graph?.trigger?.("node:property:changed", {
    type: "node:property:changed", nodeId: node.id, property: "title", oldValue: before, newValue: own.shown,
  });
}

function scoresInside(subgraph) {
  return (subgraph?.nodes ?? subgraph?._nodes ?? []).flatMap((node) =>
    node.subgraph ? scoresInside(node.subgraph) : [panels.get(node)?.short].filter(Boolean));
}

function showOnSubgraphs(graph) {
  for (const node of graph?._nodes ?? []) {
    if (!node.subgraph) continue;
    showInTitle(node, scoresInside(node.subgraph).join(", "));
    showOnSubgraphs(node.subgraph);
  }
}

// ---- when to look again

let asked = false;
let begun = false; // before the first of our nodes there may be no graph yet

function refreshAll() {
  if (asked || !begun) return;
  asked = true;
  setTimeout(() => {
    asked = false;
    for (const node of panels.keys()) refresh(node);
    showOnSubgraphs(rootGraph());
    app.canvas?.setDirty?.(true, true);
  }, 30);
}

async function restore() {
  restored = new Map();
  const root = rootGraph();
  const without = [...panels.keys()].filter((node) => node.graph && !resultsOf(node).length).map(locatorOf);
  if (!without.length) return;
  try {
    const found = await findInHistory(without);
    if (root === rootGraph()) restored = found;
  } catch (error) {
    console.debug("RALI: no history", error);
  }
  refreshAll();
}

function addPanel(node) {
  const box = makeBox();
  const panel = { box, drawn: "", short: "" };
  const widget = node.addDOMWidget("rali_scores", "rali_scores", box, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => MINIMUM_HEIGHT,
  });
  widget.serialize = false; // the graph's own list of widget values must not count it
  panels.set(node, panel);
  begun = true;
  const after = (name, then) => {
    const before = node[name];
    node[name] = function () {
      const answer = before?.apply(this, arguments);
      then(...arguments);
      return answer;
    };
  };
  after("onAdded", () => panels.set(node, panel));
  after("onRemoved", () => panels.delete(node));
  after("onExecuted", refreshAll);
  after("onConnectionsChange", () => {
    graphChanged();
    refreshAll();
  });
  after("onConfigure", () => {
    delete node.properties?.[OLD_PROPERTY];
    panel.drawn = "";
    refreshAll();
  });
  refreshAll();
}

function nameChoices(node) {
  for (const widget of node.widgets ?? []) {
    if (widget.type !== "combo" || widget.name === "sampler_name" || widget.name === "scheduler") continue;
    widget.options.getOptionLabel ??= (value) => choice(value ?? "");
  }
}

app.registerExtension({
  name: "RALI.Scores",

  setup() {
    listen(refreshAll);
  },

  nodeCreated(node) {
    if (!isOurs(node)) return;
    nameChoices(node);
    if (!WITHOUT_PANEL.has(node.comfyClass)) addPanel(node);
  },

  onNodeOutputsUpdated: refreshAll,

  afterConfigureGraph() {
    graphChanged();
    restore();
    refreshAll();
  },
});
