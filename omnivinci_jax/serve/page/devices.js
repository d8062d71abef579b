// The buttons of the microphone and the camera.

import { clock } from "./dom.js";
import { addFiles, showError } from "./draft.js";
import { openCamera, recordSound } from "./record.js";

/** Makes a button start and end recordings; `finish()` ends one that runs and adds it to the question. */
export function recordingButton(button, time) {
  let recording = null;
  let stopShowing = () => {};

  async function start() {
    try {
      recording = await recordSound();
    } catch (problem) {
      showError(problem);
      return;
    }
    button.classList.add("recording");
    button.setAttribute("aria-label", "Stop recording");
    stopShowing = showClock(time, () => button.style.setProperty("--level", recording.level()));
  }

  async function finish() {
    if (!recording) return;
    const { stop } = recording;
    stopShowing();
    recording = null;
    button.classList.remove("recording");
    button.setAttribute("aria-label", "Record sound");
    await addFiles([await stop()]);
  }

  return { finish, toggle: () => (recording ? finish() : start()) };
}

const dialog = document.getElementById("viewfinder");
const view = document.getElementById("view");
const film = document.getElementById("film");
const [filmLabel, filmTime] = film.children;

/** Opens the camera in a dialog, where the user takes a picture or records a video. */
export async function startCamera() {
  let camera;
  try {
    camera = await openCamera();
  } catch (problem) {
    showError(problem);
    return;
  }
  let end = null;
  let stopShowing = () => {};
  view.srcObject = camera.stream;
  dialog.showModal();
  const add = async (file) => {
    dialog.close();
    addFiles([file]);
  };
  document.getElementById("photo").onclick = async () => add(await camera.picture(view));
  film.onclick = async () => {
    if (end) {
      add(await end());
      return;
    }
    end = camera.film();
    film.classList.add("recording");
    filmLabel.textContent = "Stop";
    stopShowing = showClock(filmTime);
  };
  document.getElementById("viewfinder_close").onclick = () => dialog.close();
  dialog.onclose = () => {
    stopShowing();
    camera.close();
    view.srcObject = null;
    film.classList.remove("recording");
    filmLabel.textContent = "Record a video";
  };
}

/** Counts seconds in an element, ten times a second; returns a function that ends it. */
function showClock(time, each = () => {}) {
  const start = Date.now();
  const show = () => {
    time.textContent = clock((Date.now() - start) / 1000);
    each();
  };
  show();
  const timer = setInterval(show, 100);
  return () => {
    clearInterval(timer);
    time.textContent = "";
  };
}
