// Plays spoken answers while they arrive.

const RATE = 24000; // of OpenAI's pcm16

/** A spoken answer. Create it in a click or key press, else the browser keeps it silent. */
export class Speech {
  #context = new AudioContext();
  #buffers = [];
  #sources = new Set();
  #end = 0;
  onchange = () => {}; // called when it falls silent or sounds again

  /** Adds base64 of 16-bit PCM; it plays after what came before. */
  add(data) {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const samples = new Int16Array(bytes.buffer, 0, bytes.length >> 1);
    const buffer = this.#context.createBuffer(1, samples.length, RATE);
    buffer.copyToChannel(Float32Array.from(samples, (sample) => sample / 32768), 0);
    this.#buffers.push(buffer);
    this.#schedule(buffer);
  }

  /** Seconds that were added. */
  get seconds() {
    return this.#buffers.reduce((sum, buffer) => sum + buffer.duration, 0);
  }

  get playing() {
    return this.#sources.size > 0;
  }

  stop() {
    this.#sources.forEach((source) => source.stop());
    this.#end = 0;
  }

  replay() {
    this.stop();
    this.#buffers.forEach((buffer) => this.#schedule(buffer));
  }

  #schedule(buffer) {
    const source = this.#context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.#context.destination);
    source.onended = () => {
      this.#sources.delete(source);
      if (!this.playing) this.onchange();
    };
    this.#sources.add(source);
    if (this.#sources.size === 1) this.onchange();
    this.#end = Math.max(this.#end, this.#context.currentTime);
    source.start(this.#end);
    this.#end += buffer.duration;
  }
}
