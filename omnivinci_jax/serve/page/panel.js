// The panel beside the conversation: timelines of its clips, and the tokens of the last question.

import { element } from "./dom.js";
import { drawTimeline, drawTokens } from "./timeline.js";

const [panel, meter, timelines, toggle, close] = ["panel", "meter", "timelines", "sight", "panel_close"].map((id) =>
  document.getElementById(id),
);
const wide = matchMedia("(min-width: 62rem)");

/** Adds a clip's timeline; `item` is what the server says that the model sees in it. */
export function addTimeline(clip, item) {
  const timeline = drawTimeline(item, clip.name, (time) => clip.player && (clip.player.currentTime = time));
  clip.timeline = timeline;
  clip.tokens = item.tokens;
  timelines.append(timeline.element);
  if (toggle.hidden) {
    toggle.hidden = false;
    open(wide.matches);
  }
  timeline.element.scrollIntoView({ block: "nearest" });
}

/** Forgets a clip that the user removed. */
export function removeTimeline(clip) {
  clip.timeline?.element.remove();
  if (!timelines.childElementCount) clearPanel();
}

/** Shows how many tokens of text, vision and audio the last question took, from the answer's `usage`. */
export function showUsage(usage) {
  const details = usage.prompt_tokens_details;
  const tokens = { text: details.text_tokens, vision: details.vision_tokens, audio: details.audio_tokens };
  const total = element("p", {}, element("b", {}, usage.prompt_tokens.toLocaleString("en")), " tokens in the last question");
  meter.replaceChildren(total, drawTokens(tokens));
}

/** Removes everything from the panel and closes it. */
export function clearPanel() {
  meter.replaceChildren();
  timelines.replaceChildren();
  open(false);
  toggle.hidden = true;
}

function open(shown) {
  panel.hidden = !shown;
  toggle.setAttribute("aria-expanded", shown);
  document.body.classList.toggle("beside", shown);
}

toggle.addEventListener("click", () => {
  open(panel.hidden);
  if (!panel.hidden) close.focus();
});
function leave() {
  open(false);
  toggle.focus();
}
close.addEventListener("click", leave);
document.addEventListener("pointerdown", ({ target }) => {
  if (!wide.matches && !panel.hidden && !panel.contains(target)) open(false);
});
panel.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  event.stopPropagation();
  leave();
});
