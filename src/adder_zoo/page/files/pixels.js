// From drawings and pictures to the bytes that a network takes. Resizing and grey are those of PIL, to the bit.

const PRECISION = 2 ** 22; // of PIL's coefficients for 8 bits
const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weight: (x) => cubic(Math.abs(x)) },
};

function cubic(x) {
  const a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/** For each place of the output: where its inputs begin, and their whole-number weights. */
function coefficients(size, newSize, filter) {
  const scale = size / newSize;
  const stretch = Math.max(scale, 1);
  const support = filter.support * stretch;
  return Array.from({ length: newSize }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const begin = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(size, Math.trunc(centre + support + 0.5));
    const weights = [];
    for (let i = begin; i < end; i++) weights.push(filter.weight((i - centre + 0.5) * (1 / stretch)));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { begin, weights: weights.map((weight) => rounded((weight / sum) * PRECISION)) };
  });
}

function rounded(value) {
  return Math.trunc(value < 0 ? value - 0.5 : value + 0.5);
}

/** Along one axis: the places of a line are `step` bytes apart; `starts` says where each line begins. */
function resampled(from, to, places, starts, newStarts, step, newStep) {
  starts.forEach((start, line) => {
    places.forEach(({ begin, weights }, place) => {
      let sum = PRECISION / 2;
      let at = start + begin * step;
      for (const weight of weights) {
        sum += from[at] * weight;
        at += step;
      }
      to[newStarts[line] + place * newStep] = Math.min(255, Math.max(0, Math.floor(sum / PRECISION)));
    });
  });
}

/**
 * An image {width, height, channels, data} in another size: rows first, as in PIL. Pillow 13 begins with the columns of
 * pictures that are much taller than wide, where a byte may then be another by one.
 */
function resized(image, width, height, interpolation) {
  const { channels } = image;
  const filter = FILTERS[interpolation];
  let { data } = image;
  if (width !== image.width) {
    const to = new Uint8Array(width * image.height * channels);
    const line = (count, row) => Array.from({ length: image.height * channels }, (_, i) =>
      Math.floor(i / channels) * row + (i % channels));
    resampled(data, to, coefficients(image.width, width, filter), line(image.height, image.width * channels),
      line(image.height, width * channels), channels, channels);
    data = to;
  }
  if (height !== image.height) {
    const row = width * channels;
    const to = new Uint8Array(row * height);
    const columns = Array.from({ length: row }, (_, i) => i);
    resampled(data, to, coefficients(image.height, height, filter), columns, columns, row, row);
    data = to;
  }
  return { width, height, channels, data };
}

/** Half to even, as Python rounds. */
function evenly(value) {
  const down = Math.floor(value);
  return value - down === 0.5 ? down + (down % 2) : Math.round(value);
}

function cropped(image, size) {
  const top = evenly((image.height - size[0]) / 2);
  const left = evenly((image.width - size[1]) / 2);
  const data = new Uint8Array(size[0] * size[1] * image.channels);
  const row = size[1] * image.channels;
  for (let y = 0; y < size[0]; y++) {
    const at = ((top + y) * image.width + left) * image.channels;
    data.set(image.data.subarray(at, at + row), y * row);
  }
  return { width: size[1], height: size[0], channels: image.channels, data };
}

/** The image as the network wants it: its shorter side resized, the middle cut out. */
function prepared(image, network) {
  const size = network.resize;
  const [short, long] = [Math.min(image.width, image.height), Math.max(image.width, image.height)];
  const longer = Math.trunc((size * long) / short);
  const [width, height] = image.width <= image.height ? [size, longer] : [longer, size];
  const scaled = short === size ? image : resized(image, width, height, network.interpolation);
  return cropped(scaled, network.image);
}

/** A canvas's pixels as RGB, or as PIL's grey. */
function read(canvas, channels) {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const count = canvas.width * canvas.height;
  const bytes = new Uint8Array(count * channels);
  for (let i = 0; i < count; i++) {
    const [red, green, blue] = [data[4 * i], data[4 * i + 1], data[4 * i + 2]];
    if (channels === 1) bytes[i] = (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16;
    else bytes.set([red, green, blue], 3 * i);
  }
  return { width: canvas.width, height: canvas.height, channels, data: bytes };
}

const MOST_SIDE = 2048; // of a photograph; the browser makes larger ones smaller

/** A picture's file on a canvas. Throws where the browser cannot read it. */
async function pictureOf(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const scale = Math.min(1, MOST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff"; // behind what is transparent
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas;
}

// ---- digits, as MNIST has them: white on black, in a box of 20 x 20, their centre of mass in the middle of 28 x 28

const FIELD = 28;
const BOX = 20;
const FINE = 8; // lines are drawn this many times as large, then averaged
const PEN = 2.6; // width of a line in pixels of the field

/** Strokes (lists of points [x, y]) as an image of 28 x 28. The pen is equally wide however large they were drawn. */
function digitOfStrokes(strokes) {
  const points = strokes.flat();
  const [left, right] = [Math.min(...points.map((p) => p[0])), Math.max(...points.map((p) => p[0]))];
  const [top, bottom] = [Math.min(...points.map((p) => p[1])), Math.max(...points.map((p) => p[1]))];
  const scale = ((BOX - PEN) / Math.max(right - left, bottom - top, 1e-9)) * FINE;
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = FIELD * FINE;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  Object.assign(context, { lineWidth: PEN * FINE, lineCap: "round", lineJoin: "round", strokeStyle: "#fff" });
  const middle = (FIELD * FINE) / 2;
  context.translate(middle - ((left + right) / 2) * scale, middle - ((top + bottom) / 2) * scale);
  for (const stroke of strokes) {
    context.beginPath();
    context.moveTo(stroke[0][0] * scale, stroke[0][1] * scale);
    for (const [x, y] of stroke) context.lineTo(x * scale, y * scale);
    context.stroke();
  }
  return averaged(centred(read(canvas, 1)));
}

/** The image moved so that its centre of mass is in the middle. */
function centred(image) {
  const { width, height, data } = image;
  let [mass, x, y] = [0, 0, 0];
  data.forEach((value, i) => {
    mass += value;
    x += value * ((i % width) + 0.5);
    y += value * (Math.floor(i / width) + 0.5);
  });
  const [right, down] = mass ? [Math.round(width / 2 - x / mass), Math.round(height / 2 - y / mass)] : [0, 0];
  const moved = new Uint8Array(data.length);
  data.forEach((value, i) => {
    const [column, row] = [(i % width) + right, Math.floor(i / width) + down];
    if (column >= 0 && column < width && row >= 0 && row < height) moved[row * width + column] = value;
  });
  return { ...image, data: moved };
}

function averaged(image) {
  const sums = new Float64Array(FIELD * FIELD);
  image.data.forEach((value, i) => {
    sums[Math.floor(Math.floor(i / image.width) / FINE) * FIELD + Math.floor((i % image.width) / FINE)] += value;
  });
  const data = Uint8Array.from(sums, (sum) => Math.round(sum / FINE ** 2));
  return { width: FIELD, height: FIELD, channels: 1, data };
}

/**
 * A grey picture of a digit, and what was done to it. Small ones are taken as they are, as MNIST's own files; a
 * photograph is made white on black, freed of its background, and put in the middle as MNIST's digits are.
 */
function digitOfPicture(image) {
  const { width, height, data } = image;
  const border = data.filter((_, i) => {
    const [x, y] = [i % width, Math.floor(i / width)];
    return x === 0 || y === 0 || x === width - 1 || y === height - 1;
  });
  const background = border.slice().sort()[border.length >> 1];
  const isLight = background > 127;
  if (Math.max(width, height) <= 64 && !isLight) return { image, note: "" };
  const ink = data.map((value) => (isLight ? background - value : value - background) > 0
    ? Math.abs(value - background) : 0);
  const strongest = ink.reduce((most, value) => Math.max(most, value), 0);
  if (strongest < 32) return { image: null, note: "There is no digit to be seen in this picture." };
  const clean = ink.map((value) => (value * 3 < strongest ? 0 : Math.round((value * 255) / strongest)));
  const note = "Cut out and put in the middle, as MNIST's digits are.";
  return { image: boxed({ ...image, data: clean }), note: isLight ? `Turned to white on black. ${note}` : note };
}

function boxed(image) {
  const { width, height, data } = image;
  let [left, right, top, bottom] = [width, -1, height, -1];
  data.forEach((value, i) => {
    if (!value) return;
    const [x, y] = [i % width, Math.floor(i / width)];
    [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x), Math.min(top, y), Math.max(bottom, y)];
  });
  const [w, h] = [right - left + 1, bottom - top + 1];
  const cut = new Uint8Array(w * h);
  for (let y = 0; y < h; y++) cut.set(data.subarray((top + y) * width + left, (top + y) * width + right + 1), y * w);
  const scale = BOX / Math.max(w, h);
  const [newWidth, newHeight] = [Math.max(1, Math.round(w * scale)), Math.max(1, Math.round(h * scale))];
  const small = resized({ width: w, height: h, channels: 1, data: cut }, newWidth, newHeight, "bilinear");
  const field = new Uint8Array(FIELD * FIELD);
  const [x0, y0] = [(FIELD - newWidth) >> 1, (FIELD - newHeight) >> 1];
  for (let y = 0; y < newHeight; y++) {
    field.set(small.data.subarray(y * newWidth, (y + 1) * newWidth), (y0 + y) * FIELD + x0);
  }
  return centred({ width: FIELD, height: FIELD, channels: 1, data: field });
}
