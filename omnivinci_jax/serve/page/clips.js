// Clips: the user's files, as a part of a message and as elements of the page.

import { element, icon } from "./dom.js";

// Types that browsers do not know.
const TYPES = { heic: "image/heic", heif: "image/heif", mkv: "video/x-matroska" };

/** Reads a file as a clip: {name, kind, url, part}. `part` is what a message sends, `url` what the page plays. */
export async function readClip(file) {
  const extension = file.name.split(".").pop().toLowerCase();
  const type = file.type || TYPES[extension] || "";
  const kind = { image: "image", audio: "sound", video: "video" }[type.split("/")[0]];
  if (!kind) throw new Error(`${file.name}: this is not a picture, a sound or a video.`);
  const data = await base64(file);
  const url = `data:${type.split(";")[0]};base64,${data}`;
  const part = {
    image: { type: "image_url", image_url: { url } },
    sound: { type: "input_audio", input_audio: { data, format: extension } },
    video: { type: "video_url", video_url: { url } },
  }[kind];
  return { name: file.name, kind, url: URL.createObjectURL(file), part };
}

function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.split(",")[1] ?? "");
    reader.onerror = () => reject(new Error(`${file.name}: the file cannot be read.`));
    reader.readAsDataURL(file);
  });
}

/** Makes the clip's small preview, for the draft of a question. */
export function preview(clip) {
  if (clip.kind === "image") {
    const image = element("img", { src: clip.url, alt: "" });
    image.onerror = () => image.replaceWith(icon("eye")); // browsers do not draw HEIC
    return image;
  }
  if (clip.kind === "video") return element("video", { src: clip.url, muted: true, preload: "auto", tabIndex: -1 });
  return icon("note");
}

/** Makes the clip's player, for a question that was sent. */
export function player(clip) {
  if (clip.kind === "image") return element("img", { src: clip.url, alt: clip.name });
  const tag = clip.kind === "video" ? "video" : "audio";
  return element(tag, { src: clip.url, controls: true, playsInline: true, preload: "auto", "aria-label": clip.name });
}
