// A network: its WebAssembly, made of the generated C, and what it answers.

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

/** Reads the networks that the page holds, in their order. */
function embeddedNetworks() {
  return Array.from(document.querySelectorAll("script.network"), (block) => JSON.parse(block.textContent));
}

/**
 * A function from the bytes of an image (height x width x channels) to
 * {logits, shares, tensors, milliseconds}; tensors are those that the page shows, by name.
 */
async function engineOf(network) {
  const wanted = new Set(network.tensors.map((tensor) => tensor.name));
  const kinds = { 1: Uint8Array, 2: Int16Array, 4: Int32Array };
  let tensors = new Map();
  let exported = null;

  function trace(name, values, pixels, channels, bytes) {
    const memory = new Uint8Array(exported.memory.buffer);
    const text = new TextDecoder().decode(memory.subarray(name, memory.indexOf(0, name)));
    if (wanted.has(text)) {
      tensors.set(text, new kinds[bytes](exported.memory.buffer, values, pixels * channels).slice());
    }
  }

  const { instance } = await WebAssembly.instantiate(bytesOf(network.wasm), { page: { trace } });
  exported = instance.exports;
  const size = network.image[0] * network.image[1] * network.image[2];

  return function predict(image) {
    tensors = new Map();
    const started = performance.now();
    new Uint8Array(exported.memory.buffer, exported.image(), size).set(image);
    const at = exported.run();
    const milliseconds = performance.now() - started;
    const logits = Array.from(new Int32Array(exported.memory.buffer, at, network.classes.length));
    return { logits, shares: softmax(logits.map((logit) => logit * network.logit_step)), tensors, milliseconds };
  };
}

function softmax(values) {
  const largest = Math.max(...values);
  const powers = values.map((value) => Math.exp(value - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}
