// video.js URL[,URL…] OUTPUT.mp4: visits the pages, scrolls down each, and makes a film of it with ffmpeg.
import { spawnSync } from "node:child_process";
import { mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Failure, args, pause, withPage } from "./cdp.js";

const [urls, output, options] = args("video.js URL[,URL…] OUTPUT.mp4 [--seconds N] [--fps N] [--width N] [--height N]", 2, {
  seconds: 4,
  fps: 5,
  width: 1280,
  height: 720,
});

function ffmpeg(frames, quiet) {
  const number = "frame-%05d.jpg";
  // Players want even sides and this pixel format.
  const filter = "scale=trunc(iw/2)*2:trunc(ih/2)*2,format=yuv420p";
  return [quiet, "-y", "-framerate", options.fps, "-i", join(frames, number), "-vf", filter, output].flat().map(String);
}

await withPage(options, async (page) => {
  const frames = `${output}.frames`;
  await rm(frames, { recursive: true, force: true });
  await mkdir(frames, { recursive: true });
  await page.size(options.width, options.height);
  const each = Math.max(1, Math.round(options.seconds * options.fps));
  let count = 0;
  // A comma may be part of an address.
  for (const url of urls.split(/,(?=\s*[a-z][a-z0-9+.-]*:)/i)) {
    await page.goto(url.trim());
    const start = Date.now();
    for (let frame = 0; frame < each; frame++) {
      const down = frame / Math.max(1, each - 1);
      await page.evaluate(`scrollTo(0, ${down} * (document.documentElement.scrollHeight - innerHeight))`);
      const bytes = await page.capture("Page.captureScreenshot", { format: "jpeg", quality: 85 });
      await writeFile(join(frames, `frame-${String(++count).padStart(5, "0")}.jpg`), bytes);
      // At the pace it is played, if the browser keeps up.
      await pause(start + ((frame + 1) * 1000) / options.fps - Date.now());
    }
  }
  const made = spawnSync("ffmpeg", ffmpeg(frames, ["-loglevel", "error"]), { stdio: ["ignore", "ignore", "inherit"] });
  if (made.error?.code === "ENOENT") {
    const command = ["ffmpeg", ...ffmpeg(frames, [])].map((word) => (/[^\w./%=:-]/.test(word) ? `'${word}'` : word));
    throw new Failure(`ffmpeg is not installed; the ${count} frames are in ${frames}. Where it is: ${command.join(" ")}`);
  }
  if (made.status !== 0) throw new Failure(`ffmpeg failed; the ${count} frames are in ${frames}`);
  await rm(frames, { recursive: true });
  console.log(output);
});
