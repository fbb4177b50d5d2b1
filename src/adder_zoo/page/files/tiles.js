// Small pictures of filters and of what layers answer.

function canvasOf(width, height, label) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  if (label) {
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
  } else {
    canvas.setAttribute("aria-hidden", "true");
  }
  return canvas;
}

/** Paints values, 0 to 255, of one channel or of three, which lie innermost. */
function paintBytes(canvas, data, channels) {
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  for (let i = 0; i < canvas.width * canvas.height; i++) {
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = data[i * channels + (channels === 3 ? c : 0)];
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
}

/** Values stretched to 0 to 255. */
function stretched(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  const scale = high > low ? 255 / (high - low) : 0;
  return Uint8ClampedArray.from(values, (value) => (value - low) * scale);
}

/** Filter k of a layer as a picture: in colour for three channels, else with its channels side by side. */
function filterCanvas(layer, weights, k) {
  const [, R, S, C] = layer.shape;
  const own = stretched(weights.subarray(k * R * S * C, (k + 1) * R * S * C));
  if (C === 1 || C === 3) {
    const canvas = canvasOf(S, R);
    paintBytes(canvas, own, C);
    return canvas;
  }
  const columns = Math.ceil(Math.sqrt(C));
  const canvas = canvasOf(columns * (S + 1) - 1, Math.ceil(C / columns) * (R + 1) - 1);
  const context = canvas.getContext("2d");
  for (let c = 0; c < C; c++) {
    const part = canvasOf(S, R);
    paintBytes(part, own.filter((_, i) => i % C === c), 1);
    context.drawImage(part, (c % columns) * (S + 1), Math.floor(c / columns) * (R + 1));
  }
  return canvas;
}

/** Channel k of a tensor [H, W, C], black where it is smallest in the whole tensor. */
function paintChannel(canvas, scaled, k, channels) {
  paintBytes(canvas, scaled.filter((_, i) => i % channels === k), 1);
}
