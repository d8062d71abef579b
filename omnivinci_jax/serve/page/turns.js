// Questions and answers as the page shows them.

import { player } from "./clips.js";
import { element, icon, iconButton } from "./dom.js";
import { prose } from "./prose.js";

const turns = document.getElementById("turns");
const scroller = document.getElementById("scroller");
const announcer = document.getElementById("announcer");

/** Shows a question with its clips; returns its element. */
export function addQuestion(text, clips) {
  const question = element("li", { class: "question" }, element("h2", { class: "hidden" }, "You"));
  if (clips.length) {
    const players = clips.map((clip) => {
      clip.player = player(clip);
      clip.player.addEventListener("timeupdate", () => {
        if (!clip.player.paused) clip.timeline?.showTime(clip.player.currentTime);
      });
      return element("figure", { class: clip.kind }, clip.player, element("figcaption", {}, clip.name));
    });
    question.append(element("div", { class: "players" }, ...players));
  }
  if (text) question.append(element("p", { class: "bubble" }, text));
  turns.append(question);
  return question;
}

/** An answer that grows. Screen readers hear it sentence by sentence. */
export class Answer {
  text = "";
  #heard = 0;
  #body = element("div", { class: "prose" }, element("span", { class: "waiting" }, element("i"), element("i"), element("i")));
  #foot = element("footer");
  #frame = 0;

  constructor() {
    this.element = element("li", { class: "answer", "aria-busy": "true" }, element("h2", { class: "hidden" }, "Model"), this.#body, this.#foot);
    turns.append(this.element);
    announcer.replaceChildren();
    scroller.scrollTop = scroller.scrollHeight;
  }

  add(piece) {
    this.text += piece;
    this.#frame ||= requestAnimationFrame(() => this.#draw());
    const end = this.text.slice(this.#heard).search(/[.!?:\n](?=\s[^]*$)/);
    if (end >= 0) this.#announce(this.#heard + end + 1);
  }

  /** Ends the answer: `facts` is the line under it; `speech`, if any, can be heard again. */
  finish(facts, speech) {
    this.#draw();
    this.#announce(this.text.length);
    this.element.setAttribute("aria-busy", "false");
    if (!this.text) this.#body.replaceChildren(element("p", { class: "nothing" }, "The model answered with no words."));
    const line = element("p", {}, facts.join(" · "));
    if (navigator.clipboard) this.#foot.append(copyButton(this.text));
    if (speech) this.#foot.append(speechButton(speech));
    this.#foot.append(line);
    keepAtEnd(() => {});
  }

  #draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const made = prose(this.text);
    const shown = [...this.#body.children];
    const first = made.findIndex((block, i) => !shown[i]?.isEqualNode(block));
    if (first < 0) return;
    // What is complete stays, so that the user can select it meanwhile.
    keepAtEnd(() => {
      shown.slice(first).forEach((block) => block.remove());
      this.#body.append(...made.slice(first));
    });
  }

  #announce(end) {
    const sentence = this.text.slice(this.#heard, end).trim();
    if (sentence) announcer.append(element("p", {}, sentence));
    this.#heard = end;
  }
}

function copyButton(text) {
  return iconButton("copy", "Copy the answer", async () => {
    await navigator.clipboard.writeText(text);
    announcer.replaceChildren("Copied.");
  });
}

/** Makes the button that ends a spoken answer, or plays it again. */
function speechButton(speech) {
  const button = iconButton("play", "", () => (speech.playing ? speech.stop() : speech.replay()));
  speech.onchange = () => {
    const label = speech.playing ? "Stop speaking" : "Hear the answer again";
    button.setAttribute("aria-label", label);
    button.title = label;
    button.replaceChildren(icon(speech.playing ? "square" : "play"));
  };
  speech.onchange();
  return button;
}

/** Changes the conversation, and scrolls on if its end was on screen. */
function keepAtEnd(change) {
  const atEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 120;
  change();
  if (atEnd) scroller.scrollTop = scroller.scrollHeight;
}
