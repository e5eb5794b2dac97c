// The page's runs: which node reported what, and from which graph. Nothing of this is saved.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const KEPT_RUNS = 30;
const HISTORY = 10;
const CONTROLS = new Set(["randomize", "increment", "decrement"]);
const INSIDE = -10; // the origin of a link that comes from a subgraph's own input

const runs = new Map(); // prompt id: its outcome
const origins = new Map(); // id of a result: the graphs, as texts, that gave it
let begun = 0;

export const rootGraph = () => app.rootGraph ?? app.graph;

export function locatorOf(node) {
  return !node.graph || node.graph === rootGraph() ? String(node.id) : `${node.graph.id}:${node.id}`;
}

// "12:5" of the execution, node 5 in the subgraph of node 12, to the page's locator of that node, in any instance.
function locatorOfExecution(id, root) {
  const parts = String(id).split(".")[0].split(":");
  let graph = root;
  for (const part of parts.slice(0, -1)) graph = graph?.getNodeById(part)?.subgraph ?? graph?.getNodeById(Number(part))?.subgraph;
  return graph && graph !== root ? `${graph.id}:${parts.at(-1)}` : parts.at(-1);
}

// ---- what a node's result depends on

// Values that the page itself changes after each run are not a change.
function settled(values, strict) {
  if (strict || !Array.isArray(values)) return values;
  return values.map((value, at) => (CONTROLS.has(values[at + 1]) ? "*" : value));
}

function addGraph(found, nodes, links, subgraph, instances) {
  const sources = new Map();
  for (const link of links ?? []) {
    const [id, from, slot] = Array.isArray(link) ? link : [link.id, link.origin_id, link.origin_slot];
    sources.set(id, [from, slot]);
  }
  const name = (id) => (subgraph ? `${subgraph}:${id}` : String(id));
  for (const node of nodes ?? []) {
    const wires = [];
    const needs = [];
    for (const input of node.inputs ?? []) {
      const [from, slot] = sources.get(input.link) ?? [];
      if (from === undefined) continue;
      wires.push([input.name, String(from), slot]);
      if (Number(from) === INSIDE) needs.push(...(instances.get(subgraph) ?? []));
      else needs.push(name(from));
    }
    // Of KJNodes' wireless pair.
    if (node.type === "GetNode") {
      for (const other of nodes) {
        if (other.type === "SetNode" && other.widgets_values?.[0] === node.widgets_values?.[0]) needs.push(name(other.id));
      }
    }
    const values = node.widgets_values?.length === 0 ? undefined : node.widgets_values; // the renderers differ in it
    found.set(name(node.id), { kind: node.type, mode: node.mode ?? 0, values, wires, needs });
  }
}

// A serialised workflow as a map from each node to what it is and needs.
function readWorkflow(workflow) {
  const found = new Map();
  const subgraphs = workflow?.definitions?.subgraphs ?? [];
  const instances = new Map(subgraphs.map(({ id }) => [id, []]));
  for (const [nodes, inside] of [[workflow?.nodes, null], ...subgraphs.map((each) => [each.nodes, each.id])]) {
    for (const node of nodes ?? []) instances.get(node.type)?.push(inside ? `${inside}:${node.id}` : String(node.id));
  }
  addGraph(found, workflow?.nodes, workflow?.links, null, instances);
  for (const { id, nodes, links } of subgraphs) addGraph(found, nodes, links, id, instances);
  for (const node of found.values()) {
    if (!instances.has(node.kind)) continue;
    for (const name of found.keys()) if (name.startsWith(`${node.kind}:`)) node.needs.push(name);
  }
  return found;
}

// Everything that one node's result depends on, as a text.
function dependencies(nodes, locator, strict = false) {
  const seen = new Set();
  const open = [locator];
  while (open.length) {
    const next = open.pop();
    if (seen.has(next) || !nodes.has(next)) continue;
    seen.add(next);
    open.push(...nodes.get(next).needs);
  }
  const described = [...seen].sort().map((each) => {
    const { kind, mode, values, wires } = nodes.get(each);
    return [each, kind, mode, settled(values, strict), wires];
  });
  return JSON.stringify(described);
}

let current = null;
let currentGraph = null;

// The graph on the canvas; read once between two changes.
function currentNodes() {
  if (!current || currentGraph !== rootGraph()) {
    currentGraph = rootGraph();
    current = readWorkflow(JSON.parse(JSON.stringify(currentGraph.serialize())));
  }
  return current;
}

export function graphChanged() {
  current = null;
}

// ---- runs

function run(id) {
  if (!runs.has(id)) {
    runs.set(id, {
      id, graph: null, nodes: null, locators: new Map(), executed: new Map(), cached: [], executing: null,
      progress: new Map(), tally: new Map(), order: 0, ending: null,
    });
    while (runs.size > KEPT_RUNS) runs.delete(runs.keys().next().value);
  }
  return runs.get(id);
}

const toLocator = (one, id) => one.locators.get(String(id)) ?? locatorOfExecution(id, rootGraph());

// Nodes that this prompt needs: those that lead to an output, or to one of the targets of a partial run.
function reached(prompt, targets) {
  const outputs = (id) => isOutput(prompt[id].class_type);
  const open = targets?.length ? targets.map(String) : Object.keys(prompt).filter(outputs);
  const seen = new Set();
  while (open.length) {
    const next = open.pop();
    if (seen.has(next) || !prompt[next]) continue;
    seen.add(next);
    for (const value of Object.values(prompt[next].inputs)) if (Array.isArray(value)) open.push(String(value[0]));
  }
  return seen;
}

const isOutput = (kind) => Boolean(globalThis.LiteGraph?.registered_node_types?.[kind]?.nodeData?.output_node);

function rememberOrigin(one, locator, result) {
  if (!one.nodes || !result?.id) return;
  const texts = origins.get(result.id) ?? new Set();
  texts.add(dependencies(one.nodes, locator));
  origins.set(result.id, texts);
  if (origins.size > 500) origins.delete(origins.keys().next().value);
}

function remember(one, locator, results) {
  for (const each of results ?? []) rememberOrigin(one, locator, each);
  if (!results) showsItsResult(one, locator);
}

// Keeps the graph of each prompt that is queued from now on.
function watchQueue(changed) {
  const queuePrompt = api.queuePrompt;
  api.queuePrompt = async function (number, data, options) {
    const root = rootGraph();
    const prompt = data?.output ?? {};
    const locators = new Map(Object.keys(prompt).map((id) => [id, locatorOfExecution(id, root)]));
    const nodes = readWorkflow(JSON.parse(JSON.stringify(data?.workflow ?? {})));
    const reply = await queuePrompt.apply(this, arguments);
    if (reply?.prompt_id) {
      const one = run(reply.prompt_id);
      one.graph = root?.id;
      one.nodes = nodes;
      one.locators = locators;
      one.parts = new Set([...reached(prompt, options?.partialExecutionTargets)].map((id) => locators.get(id)));
      // On a busy machine the reply may come after the run's first messages, or after its last one.
      for (const [locator, results] of one.executed) remember(one, locator, results);
      changed();
    }
    return reply;
  };
}

export function listen(changed) {
  watchQueue(changed);
  const on = (event, handle) =>
    api.addEventListener(event, ({ detail }) => {
      handle(detail);
      changed();
    });
  on("execution_start", ({ prompt_id }) => {
    run(prompt_id).order = ++begun;
  });
  on("execution_cached", ({ prompt_id, nodes }) => {
    run(prompt_id).cached = nodes ?? [];
  });
  on("progress_state", ({ prompt_id, nodes }) => {
    const one = run(prompt_id);
    one.executing = new Set();
    for (const state of Object.values(nodes ?? {})) {
      const locator = toLocator(one, state.display_node_id ?? state.node_id);
      if (state.state === "running") one.executing.add(locator);
      if (state.state === "running") one.progress.set(locator, [state.value, state.max]);
    }
  });
  on("rali.progress", (message) => {
    const one = run(message.prompt_id);
    one.tally.set(toLocator(one, message.node), message);
  });
  on("executed", ({ prompt_id, node, display_node, output }) => {
    const one = run(prompt_id);
    const locator = toLocator(one, display_node ?? node);
    one.executed.set(locator, output?.rali);
    remember(one, locator, output?.rali);
  });
  for (const [event, ending] of Object.entries({
    execution_success: "success", execution_error: "failed", execution_interrupted: "stopped",
  })) {
    on(event, ({ prompt_id }) => {
      run(prompt_id).ending = ending;
    });
  }
  api.addEventListener("graphChanged", () => {
    graphChanged();
    changed();
  });
}

// A node that writes its result into its own widgets, as text displays do, is not changed by that.
function showsItsResult(one, locator) {
  if (!one.nodes?.has(locator) || one.graph !== rootGraph()?.id) return;
  setTimeout(() => {
    graphChanged();
    const now = currentNodes().get(locator);
    const then = one.nodes.get(locator);
    if (now?.kind === then.kind) then.values = now.values;
  });
}

// The last run of the graph on the canvas that this node was a part of.
export function lastRun(locator) {
  const graph = rootGraph()?.id;
  const all = [...runs.values()].filter((one) => one.order && one.graph === graph && one.parts?.has(locator));
  const last = all.sort((a, b) => b.order - a.order)[0];
  if (!last) return null;
  const reported = last.executed.has(locator) || last.cached.some((id) => toLocator(last, id) === locator);
  return {
    ending: last.ending,
    reported,
    executing: !last.ending && Boolean(last.executing?.has(locator)) && !last.executed.has(locator),
    progress: last.progress.get(locator),
    tally: last.tally.get(locator),
  };
}

// Whether a result came from the graph as it is now: true, false, or null where that is not known.
export function isCurrent(locator, result) {
  const texts = origins.get(result?.id);
  if (!texts) return null;
  return texts.has(dependencies(currentNodes(), locator));
}

// ---- the server's history, for results that this page did not see come

let asked = null;

async function fetchHistory() {
  const reply = await api.fetchApi(`/history?max_items=${HISTORY}`);
  return Object.values(await reply.json()).reverse();
}

// Results of earlier runs of exactly this graph: node to what it reported. After a reload, and for an opened file.
export async function findInHistory(locators) {
  asked ??= fetchHistory().finally(() => setTimeout(() => (asked = null), 2000));
  const now = currentNodes();
  const root = rootGraph();
  const found = new Map();
  for (const entry of await asked) {
    const workflow = entry.prompt?.[3]?.extra_pnginfo?.workflow;
    const reports = Object.entries(entry.outputs ?? {}).filter(([, output]) => output?.rali?.[0]?.id);
    if (!workflow || !reports.length) continue;
    const then = readWorkflow(workflow);
    for (const [id, output] of reports) {
      const locator = locatorOfExecution(id, root);
      if (!locators.includes(locator) || found.has(locator) || root !== rootGraph()) continue;
      if (dependencies(then, locator, true) !== dependencies(now, locator, true)) continue;
      found.set(locator, output.rali);
      for (const each of output.rali) rememberOrigin({ nodes: then }, locator, each);
    }
  }
  return found;
}
