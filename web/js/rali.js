// Draws scores on RALI nodes: a bar and a number per image, in both of ComfyUI's node renderers.
// The last result is kept in node.properties, so it is there again when the workflow is opened later.
import { app } from "../../../scripts/app.js";

const PROPERTY = "rali_scores";
const WITHOUT_SCORES = new Set(["RALI_LoadModel"]);
const SHOWN = 16;
const COLOURS = { pass: "#4caf6a", fail: "#e0524d", plain: "#5b8def" };

function element(tag, style, text) {
  const made = document.createElement(tag);
  Object.assign(made.style, style);
  if (text !== undefined) made.textContent = text;
  return made;
}

function row(score, index, result) {
  const limited = result.threshold !== null && result.threshold !== undefined;
  // Results that older versions saved hold no `passed` and no `reasons`.
  const passed = limited ? (result.passed?.[index] ?? (score !== null && score >= result.threshold)) : null;
  const reason = result.reasons?.[index];
  const colour = score === null ? "#888" : passed === null ? COLOURS.plain : passed ? COLOURS.pass : COLOURS.fail;
  const chosen = result.chosen?.includes(index);
  const line = element("div", { display: "flex", alignItems: "center", gap: "6px", height: "16px" });
  if (reason) line.title = `image ${index}: ${reason}`;
  line.dataset.raliReason = reason ?? "";
  line.dataset.raliScore = score === null ? "" : score.toFixed(3);
  line.dataset.raliPassed = passed === null ? "" : String(passed);
  line.append(element("span", { width: "34px", opacity: "0.7", textAlign: "right" }, `${chosen ? "★ " : ""}${index}`));
  const track = element("div", {
    flex: "1", height: "8px", borderRadius: "4px", background: "rgba(128,128,128,0.3)", position: "relative",
    overflow: "hidden",
  });
  const share = Math.min(Math.max(score ?? 0, 0), 1) * 100;
  track.append(element("div", { width: `${share}%`, height: "100%", background: colour }));
  if (passed !== null) {
    const mark = { position: "absolute", top: "0", height: "100%", width: "2px", background: "rgba(255,255,255,0.7)" };
    track.append(element("div", { ...mark, left: `${Math.min(Math.max(result.threshold, 0), 1) * 100}%` }));
  }
  line.append(track);
  const text = score === null ? "no score" : reason === "no content" ? reason : score.toFixed(3);
  line.append(element("span", { width: reason ? "74px" : "56px", whiteSpace: "nowrap", color: colour, fontWeight: "bold" }, text + (passed === null ? "" : passed ? " ✓" : " ✗")));
  return line;
}

function draw(box, result) {
  box.replaceChildren();
  const scores = Array.isArray(result?.scores) ? result.scores : [];
  const note = result?.note || (result ? "" : "press Run to see scores");
  if (note) {
    const style = { opacity: "0.85", whiteSpace: "nowrap", overflow: "hidden", textOverflow: "ellipsis", height: "16px" };
    const line = element("div", style, note);
    line.title = note;
    line.className = "rali-note";
    box.append(line);
  }
  scores.slice(0, SHOWN).forEach((score, index) => box.append(row(score, index, result)));
  if (scores.length > SHOWN) box.append(element("div", { opacity: "0.7" }, `and ${scores.length - SHOWN} more`));
}

function height(result) {
  const count = result?.scores?.length ?? 0;
  const lines = Math.min(count, SHOWN) + (count > SHOWN ? 1 : 0) + (result?.note || !result ? 1 : 0);
  return 12 + Math.max(lines, 1) * 18;
}

function addPanel(node) {
  const box = element("div", {
    font: "11px sans-serif", padding: "6px 8px", boxSizing: "border-box", color: "var(--input-text, #ddd)",
    background: "var(--comfy-input-bg, #222)", borderRadius: "6px", overflow: "hidden",
  });
  box.className = "rali-scores";
  let result = null;
  const widget = node.addDOMWidget("rali_scores", "rali_scores", box, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => height(result),
    getMaxHeight: () => height(result),
  });
  widget.serialize = false; // the graph's own list of widget values must not count it
  node.raliShow = (next) => {
    result = next ?? null;
    draw(box, result);
    box.style.minHeight = `${height(result)}px`;
    const needed = node.computeSize();
    if (node.size[0] < needed[0] || node.size[1] < needed[1]) {
      node.setSize([Math.max(node.size[0], needed[0]), Math.max(node.size[1], needed[1])]);
    }
    app.graph?.setDirtyCanvas(true, true);
  };
  node.raliShow(node.properties?.[PROPERTY]);
}

app.registerExtension({
  name: "RALI.Scores",

  nodeCreated(node) {
    const type = node.comfyClass ?? "";
    if (!type.startsWith("RALI_") || WITHOUT_SCORES.has(type)) return;
    addPanel(node);
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      const result = output?.rali?.[0];
      if (!result) return;
      this.properties = this.properties ?? {};
      this.properties[PROPERTY] = result;
      this.raliShow(result);
    };
    const configured = node.onConfigure;
    node.onConfigure = function () {
      configured?.apply(this, arguments);
      this.raliShow?.(this.properties?.[PROPERTY]);
    };
  },
});
