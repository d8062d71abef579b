// The page: asks the server, and connects buttons, keys, files and recordings.

import { ask, modelName } from "./api.js";
import { recordingButton, startCamera } from "./devices.js";
import { addFiles, forgetClips, restoreDraft, showError, takeDraft } from "./draft.js";
import { clearPanel, showUsage } from "./panel.js";
import { Speech } from "./speech.js";
import { addQuestion, Answer } from "./turns.js";

const $ = (id) => document.getElementById(id);
let messages = [];
let model = null;
let answering = null; // the AbortController of the answer that streams
let speech = null;

async function send() {
  if (answering) return;
  await microphone.finish();
  const aloud = $("aloud").getAttribute("aria-pressed") === "true";
  const draft = takeDraft();
  const { text, clips } = draft;
  if (!text && !clips.length) return;
  const content = [...clips.map((clip) => clip.part), ...(text ? [{ type: "text", text }] : [])];
  const asked = [...messages, { role: "user", content }];
  $("welcome").hidden = true;
  const question = addQuestion(text, clips);
  const answer = new Answer();
  speech?.stop();
  speech = aloud ? new Speech() : null;
  const controller = new AbortController();
  setAnswering(controller);
  const measured = { start: performance.now() };
  let stopped = false;
  let problem = null;
  try {
    model ??= await modelName();
    for await (const piece of ask(asked, { model, aloud, signal: controller.signal })) {
      if (controller !== answering) break; // a new conversation began
      if (piece.text) {
        measured.last = performance.now();
        measured.first ??= measured.last;
        answer.add(piece.text);
      }
      if (piece.audio) speech.add(piece.audio);
      if (piece.usage) showUsage((measured.usage = piece.usage));
      measured.finish = piece.finish ?? measured.finish;
    }
  } catch (error) {
    stopped = error.name === "AbortError";
    if (!stopped) problem = error;
  }
  if (controller !== answering) return;
  setAnswering(null);
  if (!answer.text && (problem || stopped)) {
    question.remove();
    answer.element.remove();
    restoreDraft(draft);
    $("welcome").hidden = messages.length > 0;
  } else {
    messages = [...asked, { role: "assistant", content: answer.text }];
    answer.finish(facts(measured, stopped), speech?.seconds ? speech : null);
  }
  if (problem) showError(problem);
}

/** Returns how fast the answer came and how it ended. */
function facts({ start, first, last, usage, finish }, stopped) {
  const line = [];
  if (first) line.push(`first token ${((first - start) / 1000).toFixed(2)} s`);
  if (usage?.completion_tokens > 1 && last > first)
    line.push(`${((1000 * (usage.completion_tokens - 1)) / (last - first)).toFixed(1)} tokens/s`);
  if (usage) line.push(`${usage.completion_tokens} token${usage.completion_tokens === 1 ? "" : "s"}`);
  if (stopped) line.push("stopped");
  if (finish === "length") line.push("cut at the longest answer that the server allows");
  return line;
}

function setAnswering(controller) {
  answering = controller;
  $("send").hidden = Boolean(controller);
  $("stop").hidden = !controller;
}

function stop() {
  if (answering) $("question").focus();
  answering?.abort();
  speech?.stop();
}

function restart() {
  const old = answering;
  setAnswering(null);
  old?.abort();
  speech?.stop();
  messages = [];
  forgetClips();
  clearPanel();
  $("turns").replaceChildren();
  $("welcome").hidden = false;
  $("question").focus();
}

const microphone = recordingButton($("microphone"), $("recorded"));
const starts = {
  files: () => $("chosen").click(),
  microphone: () => microphone.toggle(),
  camera: startCamera,
};
for (const [name, start] of Object.entries(starts)) {
  $(name).addEventListener("click", start);
  document.querySelector(`[data-start=${name}]`).addEventListener("click", start);
}
$("chosen").addEventListener("change", ({ target }) => {
  addFiles([...target.files]);
  target.value = "";
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("question").addEventListener("keydown", (event) => {
  const isPhone = matchMedia("(pointer: coarse)").matches; // where Enter makes a new line
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || isPhone) return;
  event.preventDefault();
  send();
});
$("question").addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) addFiles([...event.clipboardData.files]);
});
$("aloud").addEventListener("click", ({ currentTarget }) => {
  const pressed = currentTarget.getAttribute("aria-pressed") !== "true";
  currentTarget.setAttribute("aria-pressed", pressed);
  if (!pressed) speech?.stop();
});
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", restart);
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) stop();
});

const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
let entered = 0;
addEventListener("dragenter", (event) => hasFiles(event) && document.body.classList.toggle("dropping", ++entered > 0));
addEventListener("dragleave", (event) => hasFiles(event) && document.body.classList.toggle("dropping", --entered > 0));
addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  entered = 0;
  document.body.classList.remove("dropping");
  addFiles([...event.dataTransfer.files]);
});

modelName().then((name) => ($("model").textContent = model = name), showError);
