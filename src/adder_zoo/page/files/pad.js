// The square that shows the input: drawn on by mouse, finger, pen or keyboard, or filled with a picture.

const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEY_STEP = 1 / 20; // of the square's side
const LINE = 0.07;

class Pad {
  /** `changed` is called when strokes were drawn or taken back. */
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.changed = changed;
    this.strokes = [];
    this.picture = null;
    this.draws = false;
    this.pointer = null; // the id of the finger or pen that is drawing
    this.cursor = null; // of the keyboard: {x, y, down}
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => this.end(event));
    }
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.leave());
  }

  /** Whether one can draw, which is so for digits. */
  allow(draws) {
    this.draws = draws;
    this.canvas.classList.toggle("draws", draws);
    this.reset();
  }

  reset() {
    this.strokes = [];
    this.picture = null;
    this.pointer = null;
    if (this.cursor) this.cursor.down = false;
    this.paint();
  }

  show(picture) {
    this.reset();
    this.picture = picture;
    this.paint();
  }

  undo() {
    this.strokes.pop();
    this.paint();
    this.changed();
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  begin(event) {
    if (!this.draws || this.pointer !== null || event.button !== 0) return;
    this.cursor = null;
    this.pointer = event.pointerId;
    this.canvas.setPointerCapture(event.pointerId);
    this.stroke(this.place(event));
  }

  move(event) {
    if (event.pointerId !== this.pointer) return;
    const events = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    for (const part of events.length ? events : [event]) this.strokes.at(-1).push(this.place(part));
    this.paint();
    this.changed();
  }

  end(event) {
    if (event.pointerId === this.pointer) this.pointer = null;
  }

  stroke(place) {
    this.picture = null;
    this.strokes.push([place]);
    this.paint();
    this.changed();
  }

  key(event) {
    if (!this.draws || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Delete" || event.key === "Escape") {
      this.reset();
      this.changed();
    } else if (event.key === "Backspace") {
      this.undo();
    } else if (event.key === " " || event.key === "Enter") {
      this.cursor ??= { x: 0.5, y: 0.5, down: false };
      this.cursor.down = !this.cursor.down;
      if (this.cursor.down) this.stroke([this.cursor.x, this.cursor.y]);
    } else if (event.key in KEYS) {
      this.step(KEYS[event.key]);
    } else {
      return;
    }
    event.preventDefault();
    this.paint();
  }

  step([right, down]) {
    this.cursor ??= { x: 0.5, y: 0.5, down: false };
    this.cursor.x = Math.min(0.95, Math.max(0.05, this.cursor.x + right * KEY_STEP));
    this.cursor.y = Math.min(0.95, Math.max(0.05, this.cursor.y + down * KEY_STEP));
    if (this.cursor.down && this.strokes.length) {
      this.strokes.at(-1).push([this.cursor.x, this.cursor.y]);
      this.changed();
    }
  }

  leave() {
    this.cursor = null;
    this.paint();
  }

  paint() {
    const { canvas } = this;
    const context = canvas.getContext("2d");
    const side = canvas.width;
    const ink = getComputedStyle(canvas).color;
    context.clearRect(0, 0, side, side);
    if (this.picture) this.paintPicture(context, side);
    Object.assign(context, { lineWidth: LINE * side, lineCap: "round", lineJoin: "round", strokeStyle: ink });
    for (const stroke of this.strokes) {
      context.beginPath();
      context.moveTo(stroke[0][0] * side, stroke[0][1] * side);
      for (const [x, y] of stroke) context.lineTo(x * side, y * side);
      context.stroke();
    }
    if (this.cursor) this.paintCursor(context, side);
  }

  /** The middle of the picture, which is what the network sees. */
  paintPicture(context, side) {
    const short = Math.min(this.picture.width, this.picture.height);
    const [left, top] = [(this.picture.width - short) / 2, (this.picture.height - short) / 2];
    context.imageSmoothingEnabled = short > side / 8;
    context.drawImage(this.picture, left, top, short, short, 0, 0, side, side);
  }

  paintCursor(context, side) {
    const radius = (LINE / 2) * side;
    context.beginPath();
    context.arc(this.cursor.x * side, this.cursor.y * side, radius, 0, 2 * Math.PI);
    Object.assign(context, { lineWidth: 4, strokeStyle: getComputedStyle(this.canvas).outlineColor });
    context.stroke();
  }
}
