// Texts of the panel and of widgets' choices, in the page's language. What a node reports brings its English text along.
import { app } from "../../../scripts/app.js";

const TEXTS = {
  en: {
    none: "No scores yet. Run the workflow.",
    unconnected: "Nothing is connected to {input}. Connect it, then run.",
    noOutput: "Nothing uses this node's outputs. Connect one, then run.",
    waiting: "Waiting for its turn…",
    working: "Working…",
    progress: "{done} of {of}…",
    percent: "{percent} %…",
    tally: "{tried} of {of} tried; best so far {best}, seed {seed}",
    firstTry: "{tried} of {of} tried…",
    failed: "Not current: the last run failed before this node was done.",
    stopped: "Not current: the last run was stopped before this node was done.",
    skipped: "Not current: nothing reached this node in the last run.",
    failedNone: "No scores: the last run failed before this node was done.",
    stoppedNone: "No scores: the last run was stopped before this node was done.",
    skippedNone: "No scores: nothing reached this node in the last run.",
    changed: "Not current: changed since this run. Run again.",
    earlier: "From an earlier run. Run again for current scores.",
    bypassed: "Bypassed: nothing is scored.",
    muted: "Muted: nothing is scored.",
    compared: "better than {shares}",
    share: "{percent} % of {name}",
    and: ", ",
    rest: "{shown} of {count} shown · worst {worst} (image {index})",
    noScore: "no score",
    noContent: "no content",
    image: "image {index}",
  },
  zh: {
    none: "尚无分数，请运行工作流。",
    unconnected: "{input} 未连接，请连接后运行。",
    noOutput: "此节点的输出未被使用，请连接后运行。",
    waiting: "等待执行…",
    working: "正在执行…",
    progress: "第 {done} / {of} 张…",
    percent: "{percent} %…",
    tally: "已尝试 {tried} / {of} 次；目前最佳 {best}，种子 {seed}",
    firstTry: "已尝试 {tried} / {of} 次…",
    failed: "非当前结果：上次运行在此节点完成之前失败。",
    stopped: "非当前结果：上次运行在此节点完成之前被中断。",
    skipped: "非当前结果：上次运行没有图像到达此节点。",
    failedNone: "没有分数：上次运行在此节点完成之前失败。",
    stoppedNone: "没有分数：上次运行在此节点完成之前被中断。",
    skippedNone: "没有分数：上次运行没有图像到达此节点。",
    changed: "非当前结果：之后有改动，请重新运行。",
    earlier: "来自较早的运行，请重新运行以更新。",
    bypassed: "已绕过：不评分。",
    muted: "已静音：不评分。",
    compared: "优于 {shares}",
    share: "{percent} % 的{name}",
    and: "、",
    rest: "显示 {shown} / {count} 张 · 最差 {worst}（图像 {index}）",
    noScore: "无分数",
    noContent: "无内容",
    image: "图像 {index}",
    bands: { bad: "很差", poor: "较差", fair: "一般", good: "良好", excellent: "优秀" },
    words: {
      blurred: "模糊", noisy: "噪点", blocky: "块状压缩", upscaled: "放大痕迹", oversharpened: "过度锐化",
      overexposed: "过曝", underexposed: "欠曝", "low contrast": "对比度低",
      "harsh contrast": "对比过强", "pale colours": "色彩暗淡", oversaturated: "过饱和",
      "colour fringes": "彩边", posterised: "色阶断层", "checkerboard pattern": "棋盘格纹",
    },
    populations: {
      photographs: "照片", "generated images": "生成图像", "generated pictures": "生成图像", "reference images": "参考图像",
    },
    notes: {
      aggregate: "{how} {score}",
      kept: "保留 {count} / {of} 张",
      passed: "通过 {count} / {of} 张",
      open: "打开：{score} {sign} {threshold}",
      shut: "关闭：{score} {sign} {threshold}",
      regions: "{low} 至 {high}，{count} 个区域",
      combined: "{count} 组分数的{how}",
      "no content": "无内容：图像 {images}",
      "no score": "无分数：图像 {images}",
      "no images": "没有收到图像：后续节点不执行",
      "best seed": "最佳：种子 {seed}",
      "all tried": "{of} 个种子已全部尝试",
      "stopped early": "提前停止：尝试 {tried} / {of} 个种子后有 {keep} 张达到 {threshold}",
      interrupted: "尝试 {tried} / {of} 个种子后被中断；目前最佳",
      resumed: "从第 {steps} 步后继续",
      reached: "尝试 {count} 次后达到 {threshold}",
      "not reached": "尝试 {count} 次后未达到 {threshold}",
      "best of": "最佳 {count} 张，共 {of} 张",
      "not scored": "{count} 张无法评分",
      unreadable: "无法读取文件夹",
      metadata: "来自元数据",
      sidecar: "来自附加列表",
      "scored now": "现在评分",
    },
  },
  ja: {
    none: "スコアはまだありません。ワークフローを実行してください。",
    unconnected: "{input} が未接続です。接続して実行してください。",
    noOutput: "このノードの出力は使われていません。接続して実行してください。",
    waiting: "順番を待っています…",
    working: "実行中…",
    progress: "{done} / {of} 枚目…",
    percent: "{percent} %…",
    tally: "{of} 回中 {tried} 回終了、これまでの最高 {best}、シード {seed}",
    firstTry: "{of} 回中 {tried} 回終了…",
    failed: "最新ではありません：前回の実行はこのノードの完了前に失敗しました。",
    stopped: "最新ではありません：前回の実行はこのノードの完了前に中断されました。",
    skipped: "最新ではありません：前回の実行では何も届きませんでした。",
    failedNone: "スコアなし：前回の実行はこのノードの完了前に失敗しました。",
    stoppedNone: "スコアなし：前回の実行はこのノードの完了前に中断されました。",
    skippedNone: "スコアなし：前回の実行では何も届きませんでした。",
    changed: "最新ではありません：実行後に変更されました。再実行してください。",
    earlier: "以前の実行の結果です。再実行すると更新されます。",
    bypassed: "バイパス中：採点しません。",
    muted: "ミュート中：採点しません。",
    compared: "{shares}より上",
    share: "{name}の {percent} %",
    and: "、",
    rest: "{count} 枚中 {shown} 枚を表示・最低 {worst}（画像 {index}）",
    noScore: "スコアなし",
    noContent: "内容なし",
    image: "画像 {index}",
    bands: { bad: "非常に悪い", poor: "悪い", fair: "普通", good: "良い", excellent: "非常に良い" },
    words: {
      blurred: "ぼけ", noisy: "ノイズ", blocky: "ブロックノイズ", upscaled: "拡大の跡", oversharpened: "シャープ過剰",
      overexposed: "露出オーバー", underexposed: "露出アンダー",
      "low contrast": "低コントラスト", "harsh contrast": "コントラスト過剰", "pale colours": "色が薄い",
      oversaturated: "彩度過剰", "colour fringes": "色ずれ", posterised: "階調の段差",
      "checkerboard pattern": "市松模様",
    },
    populations: {
      photographs: "写真", "generated images": "生成画像", "generated pictures": "生成画像", "reference images": "参照画像",
    },
    notes: {
      aggregate: "{how} {score}",
      kept: "{of} 枚中 {count} 枚を選択",
      passed: "{of} 枚中 {count} 枚が合格",
      open: "開：{score} {sign} {threshold}",
      shut: "閉：{score} {sign} {threshold}",
      regions: "{low} ～ {high}、{count} 領域",
      combined: "{count} 個のリストの{how}",
      "no content": "内容なし：画像 {images}",
      "no score": "スコアなし：画像 {images}",
      "no images": "画像が届きません：以降のノードは実行されません",
      "best seed": "最良：シード {seed}",
      "all tried": "{of} 個のシードをすべて試行",
      "stopped early": "早期終了：{of} 個中 {tried} 個のシードで {keep} 枚が {threshold} に到達",
      interrupted: "{of} 個中 {tried} 個のシードで中断。それまでの最良",
      resumed: "{steps} ステップの後から再開",
      reached: "{count} 回の試行で {threshold} に到達",
      "not reached": "{count} 回の試行で {threshold} に届かず",
      "best of": "{of} 枚中の最良 {count} 枚",
      "not scored": "{count} 枚は採点できません",
      unreadable: "フォルダーを読めません",
      metadata: "メタデータから",
      sidecar: "付属リストから",
      "scored now": "今回採点",
    },
  },
};

// What a widget's choice is called; its value stays as saved workflows have it.
const CHOICES = {
  en: {
    "model's own": "auto (model default)", "either-or": "switch", "as they came": "input order",
    "weakest share": "lowest fraction", "below score": "below score",
  },
  zh: {
    "model's own": "自动（模型默认）", center: "中央", tiles: "分块", full: "原始尺寸", mean: "平均", median: "中位数", minimum: "最小",
    maximum: "最大", "best first": "最佳在前", "as they came": "输入顺序", "worst first": "最差在前", block: "阻断",
    raise: "报错", "either-or": "切换", "weakest share": "最低比例", "below score": "低于分数",
    "patch tokens": "图块令牌", none: "无", "min-max": "最小-最大", "z-score": "Z 分数", rank: "名次",
    "geometric mean": "几何平均", auto: "自动", cpu: "CPU", "higher is better": "越高越好",
    "lower is better": "越低越好", "by name": "按名称", "worst tenth": "最差的十分之一", below: "下方", above: "上方",
    "over the bottom": "覆盖底部", "over the top": "覆盖顶部", photographs: "照片", "generated images": "生成图像",
  },
  ja: {
    "model's own": "自動（モデル既定）", center: "中央", tiles: "タイル", full: "原寸", mean: "平均", median: "中央値", minimum: "最小",
    maximum: "最大", "best first": "良い順", "as they came": "入力順", "worst first": "悪い順", block: "ブロック",
    raise: "エラー", "either-or": "切り替え", "weakest share": "最低の割合", "below score": "スコア未満",
    "patch tokens": "パッチトークン", none: "なし", "min-max": "最小-最大", "z-score": "Z スコア", rank: "順位",
    "geometric mean": "幾何平均", auto: "自動", cpu: "CPU", "higher is better": "高いほど良い",
    "lower is better": "低いほど良い", "by name": "名前順", "worst tenth": "最低の十分の一", below: "下", above: "上",
    "over the bottom": "下端に重ねる", "over the top": "上端に重ねる", photographs: "写真", "generated images": "生成画像",
  },
};

function language() {
  const set = app.extensionManager?.setting?.get?.("Comfy.Locale") ?? app.ui?.settings?.getSettingValue?.("Comfy.Locale");
  return set in TEXTS ? set : "en";
}

const fill = (text, values) => text.replace(/\{(\w+)\}/g, (gap, name) => values?.[name] ?? gap);

export const say = (key, values) => fill(TEXTS[language()][key], values);
export const choice = (value) => CHOICES[language()][value] ?? value;
export const band = (name) => TEXTS[language()].bands?.[name] ?? name;
// What is wrong with an image: "blurred, blocky".
export const flaws = (words) => (words ?? []).map((word) => TEXTS[language()].words?.[word] ?? word).join(say("and"));

export function note({ key, values, more, text }) {
  const own = TEXTS[language()].notes?.[key];
  if (!own) return text;
  return fill(own, { ...values, how: choice(values?.how) }) + (more ? ` (${more})` : "");
}

export function compared(percentiles) {
  const shares = Object.entries(percentiles ?? {}).filter(([, percent]) => percent !== null);
  if (!shares.length) return "";
  const named = (name) => TEXTS[language()].populations?.[name] ?? name;
  const each = shares.map(([name, percent]) => say("share", { percent: Math.round(percent), name: named(name) }));
  return say("compared", { shares: each.join(say("and")) });
}
