// Decodes images and runs the model, so that the page stays alive meanwhile.
//
// A message {model: URL of the ONNX file} is answered with {ready: true}; {id, file} with {id, score, width, height}.
// Whatever fails is answered with {id, error}.

import * as ort from "./ort.wasm.bundle.min.mjs";

// Without the two headers that make a page cross-origin isolated a browser allows one thread.
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 8) : 1;
ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", import.meta.url).href };

let session = null;

/** RGB bytes of an image file as the `rali` command reads it: upright, in sRGB, transparency on white. */
async function decode(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw new Error("this browser cannot read it as an image");
  }
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { colorSpace: "srgb", willReadFrequently: true });
  if (!context) throw new Error(`${width} x ${height} pixels are more than this browser can draw`);
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    rgb[to] = rgba[from];
    rgb[to + 1] = rgba[from + 1];
    rgb[to + 2] = rgba[from + 2];
  }
  return { rgb, width, height };
}

async function load(url) {
  const reply = await fetch(url);
  if (!reply.ok) throw new Error(`${url} is not there (${reply.status})`);
  session = await ort.InferenceSession.create(new Uint8Array(await reply.arrayBuffer()), {
    executionProviders: ["wasm"],
  });
  return { ready: true, threads: ort.env.wasm.numThreads };
}

async function score(file) {
  const { rgb, width, height } = await decode(file);
  const { score } = await session.run({ pixels: new ort.Tensor("uint8", rgb, [1, height, width, 3]) });
  return { score: score.data[0], width, height };
}

// One after the other: the runtime cannot run two images at once.
let last = Promise.resolve();
self.onmessage = ({ data }) => {
  last = last.then(async () => {
    try {
      self.postMessage({ id: data.id, ...(data.model ? await load(data.model) : await score(data.file)) });
    } catch (error) {
      self.postMessage({ id: data.id, error: error?.message ?? String(error) });
    }
  });
};
