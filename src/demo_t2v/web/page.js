// Tells the style sheet the size of a result, so that it shows whole multiples of it.
document.addEventListener("loadedmetadata", ({ target: video }) => {
  if (!video.closest?.("#result")) return;
  video.style.setProperty("--width", `${video.videoWidth}px`);
  video.style.setProperty("--ratio", video.videoWidth / video.videoHeight);
  const reduced = video.videoWidth > video.closest(".videos").clientWidth;
  video.style.imageRendering = reduced ? "auto" : ""; // the labels of a reduced grid stay readable
  video.muted = true; // a video without sound may play before the visitor has clicked
  video.play().catch(() => {});
}, true);

// Synchronizes two videos, as of a comparison: the second follows the first.
(() => {
  const pair = (video) => {
    const videos = video.closest?.(".videos")?.querySelectorAll("video") ?? [];
    return videos.length === 2 ? [...videos] : null;
  };
  const synchronize = (first, second) => {
    if (!second.seeking && Math.abs(first.currentTime - second.currentTime) > 0.08) {
      second.currentTime = first.currentTime;
    }
  };
  // Media events do not bubble, so the capture phase handles them.
  const onMedia = (name, act) => document.addEventListener(name, (event) => {
    const videos = event.target instanceof HTMLVideoElement && pair(event.target);
    if (videos) act(videos, event.target);
  }, true);

  onMedia("loadeddata", (videos) => {
    if (videos.some((video) => video.readyState < 2)) return;
    for (const video of videos) {
      video.currentTime = 0;
      video.play().catch(() => {});
    }
  });
  onMedia("timeupdate", ([first, second], target) => target === first && synchronize(first, second));
  onMedia("seeked", ([first, second], target) => target === first && synchronize(first, second));
  onMedia("pause", ([first, second], target) => target === first && second.pause());
  onMedia("play", ([first, second], target) => target === first && second.play().catch(() => {}));
})();
