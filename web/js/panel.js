// Draws one node's results into an element: state, headline, notes, a line per image.
import { api } from "../../../scripts/api.js";
import { band, compared, flaws, note, say } from "./texts.js";

const SHOWN = 16; // as nodes/_panel.py makes thumbnails
const COLOURS = { pass: "#3f9d5c", fail: "#d9483b", plain: "#4f7fdc", none: "#888" };
// Mostly the page's own text colour: readable on its dark and on its light theme.
const readable = (colour) => `color-mix(in srgb, var(--input-text, #ddd) 75%, ${colour})`;

export const MINIMUM_HEIGHT = 124; // with the margin that the canvas leaves around it
const INNER_HEIGHT = MINIMUM_HEIGHT - 20;

function element(tag, style, text, name) {
  const made = document.createElement(tag);
  Object.assign(made.style, style);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

export function makeBox() {
  const box = element("div", {
    font: "11px/15px sans-serif", padding: "6px 8px", boxSizing: "border-box", color: "var(--input-text, #ddd)",
    background: "var(--comfy-input-bg, #222)", borderRadius: "6px", overflowX: "hidden", overflowY: "auto",
    minHeight: `${INNER_HEIGHT}px`, height: "0", scrollbarWidth: "thin",
    contain: "size", // else what it holds makes a node taller in the Vue renderer, and so changes the workflow
  }, undefined, "rali-scores");
  // The wheel scrolls a long list, and zooms the canvas elsewhere.
  box.addEventListener("wheel", (event) => {
    if (box.scrollHeight > box.clientHeight && !event.ctrlKey) event.stopPropagation();
  });
  return box;
}

function thumbnail(thumbnails, place, side) {
  const { size, ...file } = thumbnails;
  const made = element("div", {
    width: `${side}px`, height: `${side}px`, flex: "none", borderRadius: "3px",
    backgroundImage: `url("${api.apiURL(`/view?${new URLSearchParams(file)}`)}")`,
    backgroundSize: `auto ${side}px`, backgroundPosition: `-${place * side}px 0`,
  }, undefined, "rali-thumbnail");
  made.dataset.raliSize = size;
  return made;
}

const verdict = (passed) => (passed === null ? "" : passed ? "✓" : "✗");
const colourOf = (score, passed) =>
  score === null ? COLOURS.none : passed === null ? COLOURS.plain : passed ? COLOURS.pass : COLOURS.fail;

function passedAt(result, index) {
  if (typeof result.threshold !== "number") return null;
  const score = result.scores[index];
  return result.passed?.[index] ?? (score !== null && score >= result.threshold);
}

// Where a value lies from 0 (worst) to 1 (best): on the result's scale, which scores beyond its ends make longer.
function position(result, value) {
  const all = [...(result.range ?? [0, 1]), ...result.scores, result.threshold].filter((each) => typeof each === "number");
  const [low, high] = [Math.min(...all), Math.max(...all)];
  return result.lower_is_better ? (high - value) / (high - low) : (value - low) / (high - low);
}

function bar(result, score, passed) {
  const within = (value) => `${(value === null ? 0 : position(result, value)) * 100}%`;
  const track = element("div", {
    flex: "1", height: "8px", borderRadius: "4px", background: "rgba(128,128,128,0.3)", position: "relative",
    overflow: "hidden", minWidth: "30px",
  });
  track.append(element("div", { width: within(score), height: "100%", background: colourOf(score, passed) }, undefined, "rali-bar"));
  if (passed !== null) {
    const mark = { position: "absolute", top: "0", height: "100%", width: "2px", background: "var(--input-text, #ddd)" };
    track.append(element("div", { ...mark, left: within(result.threshold) }));
  }
  return track;
}

function row(result, index, place, alone) {
  const score = result.scores[index];
  const passed = passedAt(result, index);
  const reason = result.reasons?.[index];
  const line = element("div", { display: "flex", alignItems: "center", gap: "6px", height: "24px" }, undefined, "rali-row");
  const percentiles = Object.fromEntries(Object.entries(result.percentiles ?? {}).map(([name, all]) => [name, all[index]]));
  line.title = [say("image", { index }), reason ?? compared(percentiles)].filter(Boolean).join(": ");
  line.dataset.raliReason = reason ?? "";
  line.dataset.raliScore = score === null ? "" : score.toFixed(3);
  line.dataset.raliPassed = passed === null ? "" : String(passed);
  line.dataset.raliIndex = index;
  if (result.thumbnails) line.append(thumbnail(result.thumbnails, place, 22));
  if (!alone) {
    const star = result.chosen?.includes(index) ? "★ " : "";
    line.append(element("span", { width: "32px", flex: "none", textAlign: "right" }, `${star}${index}`));
  }
  line.append(bar(result, score, passed));
  const text = { flex: "none", whiteSpace: "nowrap", fontWeight: "bold" };
  if (score === null || reason === "no content") {
    line.append(element("span", text, say(score === null ? "noScore" : "noContent")));
  } else if (!alone) {
    line.append(element("span", text, score.toFixed(3)));
    if (result.bands?.[index]) line.append(element("span", { flex: "none", minWidth: "52px" }, band(result.bands[index])));
  }
  const wrong = flaws(result.words?.[index]);
  line.dataset.raliWords = wrong;
  if (wrong) line.title += `\n${wrong}`;
  if (passed !== null) {
    line.append(element("span", { ...text, color: readable(colourOf(score, passed)) }, verdict(passed)));
  }
  return line;
}

// "0.819 · excellent": the headline, or the only image's.
function headline(result) {
  const one = result.headline?.score ?? null;
  if (one !== null) return { score: one, band: result.headline.band, percentiles: result.headline.percentiles };
  if (result.scores?.length !== 1 || result.scores[0] === null) return null;
  const percentiles = Object.fromEntries(Object.entries(result.percentiles ?? {}).map(([name, all]) => [name, all[0]]));
  return { score: result.scores[0], band: result.bands?.[0], percentiles };
}

// As short as a title needs it.
export function shortText(result) {
  const top = headline(result);
  if (top) return top.score.toFixed(3);
  const first = (result.order ?? [])[0];
  return first === undefined || result.scores[first] === null ? "" : `★ ${result.scores[first].toFixed(3)}`;
}

function drawResult(box, result) {
  const scores = Array.isArray(result?.scores) ? result.scores : [];
  const alone = scores.length === 1 && !result.chosen?.length;
  const top = headline(result);
  if (top) {
    const how = result.notes?.find(({ key }) => key === "aggregate");
    const text = [how ? note(how) : top.score.toFixed(3), top.band && band(top.band)].filter(Boolean).join(" · ");
    box.append(element("div", { fontSize: "13px", fontWeight: "bold" }, text, "rali-headline"));
    const meaning = compared(top.percentiles);
    if (meaning) box.append(element("div", {}, meaning, "rali-compared"));
  }
  for (const each of result.notes ?? (result.note ? [{ text: result.note }] : [])) {
    if (top && each.key === "aggregate") continue;
    const line = element("div", {}, note(each), "rali-note");
    line.title = line.textContent;
    box.append(line);
  }
  const order = result.order?.length === scores.length ? result.order : scores.map((_, index) => index);
  order.slice(0, SHOWN).forEach((index, place) => {
    const line = row(result, index, place, alone);
    box.append(line);
    if (line.dataset.raliWords) box.append(element("div", { paddingLeft: alone ? "28px" : "66px", opacity: "0.8" }, line.dataset.raliWords, "rali-words"));
  });
  if (scores.length > SHOWN) {
    const worst = order.findLast((index) => scores[index] !== null);
    const values = { shown: SHOWN, count: scores.length, worst: scores[worst]?.toFixed(3), index: worst };
    box.append(element("div", {}, say("rest", values), "rali-rest"));
  }
}

// `state`: { text, current, tally }; without a text the results stand for themselves.
export function draw(box, state, results) {
  const place = box.scrollTop;
  box.replaceChildren();
  box.dataset.raliState = state.name;
  if (state.text) {
    const line = element("div", { fontStyle: "italic", display: "flex", gap: "6px", alignItems: "center" }, undefined, "rali-state");
    if (state.tally?.thumbnails) line.append(thumbnail(state.tally.thumbnails, 0, 40));
    line.append(element("span", {}, state.text));
    box.append(line);
  }
  if (!results.length) return;
  const inner = element("div", {}, undefined, "rali-results");
  if (!state.current) Object.assign(inner.style, { opacity: "0.4", filter: "grayscale(1)" });
  results.forEach((result) => drawResult(inner, result));
  box.append(inner);
  box.scrollTop = place;
}
