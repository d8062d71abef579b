// Draws what the model sees in a clip: frames at their times, the log-mel beneath, temporal groups, tokens.

import { clock, element } from "./dom.js";

// Least widths in pixels: a frame, a step of the time axis, a group that shows its number, the strip.
const [FRAME, STEP, GROUP, STRIP] = [20, 42, 18, 330];
const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600]; // of the time axis, in seconds
const LONG = 120; // seconds; longer clips show minutes

/**
 * Draws an item of the server's timeline; returns {element, showTime(seconds)}.
 * `onselect(seconds)` is called when the user goes to another frame.
 */
export function drawTimeline(item, name, onselect) {
  const { kind, frames, mel, groups, tokens } = item;
  const seconds = item.seconds ?? 0;
  const facts = [kind];
  if (seconds) facts.push(seconds < LONG ? `${seconds.toFixed(1)} s` : clock(seconds));
  if (kind === "video") facts.push(count(frames.length, "frame"));
  if (groups.length) facts.push(count(groups.length, "group"));
  const card = element("article", { class: "timeline" },
    element("header", {}, element("h3", {}, name), element("p", {}, facts.join(" · "))));

  const lens = element("img", { class: "lens" });
  lens.onload = () => lens.classList.toggle("pixels", lens.naturalWidth < 160);
  const caption = element("p", { class: "caption" });
  let showTime = () => {};
  if (kind === "image") {
    lens.src = frames[0].jpeg;
    lens.alt = `${name} as the model sees it`;
    card.append(lens);
  } else if (seconds) {
    const line = drawLine(item, seconds, name);
    if (frames.length) {
      card.append(element("div", { class: "stage" }, lens), caption);
      const show = (index) => {
        const text = describe(index, frames, groups);
        lens.src = frames[index].jpeg;
        lens.alt = text;
        caption.textContent = text;
        line.mark(index, text);
      };
      scrub(line.strip, frames, seconds, show, onselect);
      showTime = (time) => {
        line.playhead(time);
        show(frameAt(frames, time));
      };
      show(frames.length >> 1);
    } else {
      showTime = line.playhead;
    }
    if (mel === null) line.strip.classList.add("silent");
    card.append(line.scroller);
  }
  card.append(drawTokens({ vision: tokens.vision, audio: tokens.audio }));
  return { element: card, showTime };
}

/** Draws the shares of text, vision and audio in a number of tokens. */
export function drawTokens(tokens) {
  const shares = Object.entries(tokens).filter(([, number]) => number > 0);
  const bar = element("div", { class: "shares", "aria-hidden": "true" });
  const legend = element("ul", { class: "legend" });
  for (const [modality, number] of shares) {
    const share = element("span", { class: modality });
    share.style.flexGrow = number;
    bar.append(share);
    legend.append(element("li", { class: modality }, element("b", {}, number.toLocaleString("en")), ` ${modality}`));
  }
  return element("div", { class: "tokens" }, bar, legend);
}

/** Draws frames, mel, groups and time axis over one scale of time. */
function drawLine({ frames, mel, groups }, seconds, name) {
  const percent = (time) => `${(100 * time) / seconds}%`;
  const strip = element("div", { class: "strip" });
  const gap = typicalGap(frames, seconds);
  const width = Math.max(STRIP, frames.length && Math.ceil((FRAME * seconds) / gap));
  groups.forEach(({ start, end }, index) => {
    const band = element("span", { class: "group", title: `group ${index + 1}: ${start.toFixed(2)} to ${end.toFixed(2)} s` });
    band.style.left = percent(start);
    band.style.width = percent(end - start);
    if ((width * (end - start)) / seconds > GROUP) band.append(String(index + 1));
    strip.append(band);
  });
  const shown = frames.map(({ time, jpeg }) => {
    const image = element("img", { class: "frame", src: jpeg, alt: "", draggable: false });
    image.style.left = percent(time);
    image.style.setProperty("--gap", percent(gap));
    return image;
  });
  if (frames.length) strip.append(element("div", { class: "frames" }, ...shown));
  if (mel) strip.append(element("img", { class: "mel", src: mel, alt: `log-mel of ${name}`, draggable: false }));
  const playhead = element("span", { class: "playhead" });
  strip.append(drawAxis(seconds, width, percent), playhead);
  const scale = element("div", { class: "scale" }, strip);
  if (frames.length) strip.style.minWidth = `${width}px`;
  else strip.classList.add("unseen");

  const move = (time) => (playhead.style.left = percent(Math.min(time, seconds)));
  move(frames[frames.length >> 1]?.time ?? 0);
  return {
    strip,
    scroller: element("div", { class: "scroll" }, scale),
    playhead: move,
    mark(index, text) {
      shown.forEach((image, i) => image.classList.toggle("shown", i === index));
      strip.setAttribute("aria-label", `Frames of ${name}`);
      strip.setAttribute("aria-valuenow", index + 1);
      strip.setAttribute("aria-valuetext", text);
    },
  };
}

function drawAxis(seconds, width, percent) {
  const step = STEPS.find((step) => (width * step) / seconds >= STEP) ?? STEPS.at(-1);
  const axis = element("div", { class: "axis", "aria-hidden": "true" });
  for (let index = 0; index * step <= seconds; index++) {
    const time = index * step;
    const tick = element("span", {}, seconds < LONG ? String(+time.toFixed(1)) : clock(time), index || seconds >= LONG ? "" : " s");
    tick.style.left = percent(time);
    axis.append(tick);
  }
  return axis;
}

/** Lets mouse, finger and keys go through the frames. */
function scrub(strip, frames, seconds, show, onselect) {
  let index = frames.length >> 1;
  const go = (next) => {
    index = Math.max(0, Math.min(frames.length - 1, next));
    show(index);
    onselect(frames[index].time);
    const playhead = strip.querySelector(".playhead");
    playhead.style.left = `${(100 * frames[index].time) / seconds}%`;
    playhead.scrollIntoView({ block: "nearest", inline: "nearest" });
  };
  for (const [name, value] of Object.entries({ role: "slider", tabindex: 0, "aria-valuemin": 1, "aria-valuemax": frames.length }))
    strip.setAttribute(name, value);
  strip.addEventListener("keydown", (event) => {
    const next = { ArrowLeft: index - 1, ArrowDown: index - 1, ArrowRight: index + 1, ArrowUp: index + 1, Home: 0, End: frames.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    go(next);
  });
  const point = (event) => {
    const box = strip.getBoundingClientRect();
    const time = (seconds * (event.clientX - box.left)) / box.width;
    go(frames.reduce((best, frame, i) => (Math.abs(frame.time - time) < Math.abs(frames[best].time - time) ? i : best), 0));
  };
  strip.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse") strip.setPointerCapture(event.pointerId);
    point(event);
  });
  strip.addEventListener("pointermove", (event) => strip.hasPointerCapture(event.pointerId) && event.buttons && point(event));
}

/** Returns the index of the frame that is on screen at a time: the last one before it. */
function frameAt(frames, time) {
  return Math.max(0, frames.findLastIndex((frame) => frame.time <= time));
}

/** Returns the median time between frames. */
function typicalGap(frames, seconds) {
  const gaps = frames.slice(1).map((frame, i) => frame.time - frames[i].time).sort((a, b) => a - b);
  return gaps[gaps.length >> 1] || seconds / Math.max(1, frames.length);
}

function describe(index, frames, groups) {
  const { time } = frames[index];
  const group = groups.findIndex(({ start, end }) => start <= time && time < end);
  const where = group < 0 ? "" : ` · group ${group + 1}`;
  return `frame ${index + 1} of ${frames.length} · ${time.toFixed(2)} s${where}`;
}

const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
