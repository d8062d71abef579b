// The question that the user is writing: its text and clips.

import { timeline } from "./api.js";
import { preview, readClip } from "./clips.js";
import { element, iconButton } from "./dom.js";
import { addTimeline, removeTimeline } from "./panel.js";

const list = document.getElementById("draft");
const question = document.getElementById("question");
const suggestions = document.getElementById("suggestions");
const error = document.getElementById("error");
const known = new Set(); // the clips of this conversation
let clips = [];

/** Shows an error's one line above the question. */
export function showError(problem) {
  error.textContent = problem.message;
}

/** Adds files to the question; the panel shows what the model sees in them as soon as the server says it. */
export async function addFiles(files) {
  error.textContent = "";
  for (const file of files) {
    try {
      const clip = await readClip(file);
      known.add(clip);
      put(clip);
      look(clip);
    } catch (problem) {
      showError(problem);
    }
  }
  question.focus();
}

/** Empties the draft; returns its text and clips. */
export function takeDraft() {
  const taken = { text: question.value.trim(), clips };
  clips = [];
  list.replaceChildren();
  question.value = "";
  error.textContent = "";
  refresh();
  return taken;
}

/** Empties the draft, and forgets all clips of the conversation. */
export function forgetClips() {
  takeDraft();
  known.clear();
}

/** Puts back what `takeDraft` returned, in front of what the user has written since. */
export function restoreDraft({ text, clips: taken }) {
  const newer = takeDraft();
  question.value = [text, newer.text].filter(Boolean).join("\n");
  [...taken, ...newer.clips].forEach(put);
  refresh();
}

function put(clip) {
  clips.push(clip);
  const remove = iconButton("cross", `Remove ${clip.name}`, () => {
    clips = clips.filter((other) => other !== clip);
    known.delete(clip);
    clip.chip.remove();
    removeTimeline(clip);
    refresh();
    question.focus();
  });
  clip.note = element("small", {}, clip.tokens ? tokensOf(clip) : "reading …");
  const name = element("span", {}, element("b", {}, clip.name), clip.note);
  clip.chip = element("li", { class: clip.kind }, element("span", { class: "thumb" }, preview(clip)), name, remove);
  list.append(clip.chip);
  refresh();
}

async function look(clip) {
  try {
    const item = await timeline(clip.part);
    if (!known.has(clip)) return;
    addTimeline(clip, item);
    clip.note.textContent = tokensOf(clip);
  } catch (problem) {
    if (!known.has(clip)) return;
    clip.chip.classList.add("failed");
    clip.note.textContent = "not readable";
    showError(problem);
  }
}

const tokensOf = ({ tokens }) => `${(tokens.vision + tokens.audio).toLocaleString("en")} tokens`;

function refresh() {
  suggestions.hidden = !clips.length || Boolean(question.value) || Boolean(document.querySelector("#turns > li"));
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

question.addEventListener("input", refresh);
suggestions.addEventListener("click", ({ target }) => {
  if (target.tagName !== "BUTTON") return;
  question.value = target.textContent;
  refresh();
  question.focus();
});
