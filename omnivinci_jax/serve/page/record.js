// Microphone and camera.

const RATE = 16000;

async function open(wanted) {
  if (!navigator.mediaDevices) throw new Error("Recording needs this page on https or on localhost.");
  try {
    return await navigator.mediaDevices.getUserMedia(wanted);
  } catch (error) {
    const device = wanted.video ? "camera" : "microphone";
    const reason = error.name === "NotAllowedError" ? "was not allowed" : error.name === "NotFoundError" ? "was not found" : "cannot be opened";
    throw new Error(`The ${device} ${reason}.`);
  }
}

/** Starts recording a stream; `stop()` resolves to the recording. */
function record(stream) {
  const recorder = new MediaRecorder(stream);
  const pieces = [];
  recorder.ondataavailable = (event) => pieces.push(event.data);
  recorder.start();
  return () =>
    new Promise((resolve) => {
      recorder.onstop = () => resolve(new Blob(pieces, { type: recorder.mimeType }));
      recorder.stop();
    });
}

const close = (stream) => stream.getTracks().forEach((track) => track.stop());

/** Records the microphone. Returns {level(), stop()}: loudness from 0 to 1 now, and the recording as a WAV file. */
export async function recordSound() {
  const stream = await open({ audio: true });
  const context = new AudioContext();
  const analyser = context.createAnalyser();
  context.createMediaStreamSource(stream).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  const finish = record(stream);
  return {
    level() {
      analyser.getFloatTimeDomainData(samples);
      return Math.min(1, 4 * Math.sqrt(samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length));
    },
    async stop() {
      const recording = await finish();
      close(stream);
      context.close();
      return new File([await wav(recording)], fileName("wav"), { type: "audio/wav" });
    },
  };
}

/** Opens the camera. Returns {stream, picture(video), film(), close()}; `film()` returns a function that ends it. */
export async function openCamera() {
  const stream = await open({ video: { facingMode: "environment" }, audio: true });
  return {
    stream,
    async picture(video) {
      const canvas = Object.assign(document.createElement("canvas"), { width: video.videoWidth, height: video.videoHeight });
      canvas.getContext("2d").drawImage(video, 0, 0);
      const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
      return new File([blob], fileName("jpg"), { type: "image/jpeg" });
    },
    film() {
      const finish = record(stream);
      return async () => {
        const recording = await finish();
        const type = recording.type.split(";")[0];
        return new File([recording], fileName(type.split("/")[1].replace("x-matroska", "mkv")), { type });
      };
    },
    close: () => close(stream),
  };
}

function fileName(extension) {
  const time = new Date().toTimeString().slice(0, 8).replaceAll(":", ".");
  return `recorded ${time}.${extension}`;
}

/** Converts a recording to mono WAV at 16 kHz, which every server with OpenAI's API reads. */
async function wav(recording) {
  const sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await recording.arrayBuffer());
  const channels = Array.from({ length: sound.numberOfChannels }, (_, channel) => sound.getChannelData(channel));
  const view = new DataView(new ArrayBuffer(44 + 2 * sound.length));
  const text = (offset, letters) => [...letters].forEach((letter, i) => view.setUint8(offset + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * sound.length, true);
  text(8, "WAVEfmt ");
  [[16, 16, 4], [20, 1, 2], [22, 1, 2], [24, RATE, 4], [28, 2 * RATE, 4], [32, 2, 2], [34, 16, 2], [40, 2 * sound.length, 4]].forEach(
    ([offset, value, bytes]) => (bytes === 4 ? view.setUint32(offset, value, true) : view.setUint16(offset, value, true)),
  );
  text(36, "data");
  for (let i = 0; i < sound.length; i++) {
    const sample = channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length;
    view.setInt16(44 + 2 * i, 32767 * Math.max(-1, Math.min(1, sample)), true);
  }
  return view.buffer;
}
