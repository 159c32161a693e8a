// The two videos of a comparison, in step: the second follows the first.
(() => {
  const pair = (video) => {
    const videos = video.closest?.(".in-step")?.querySelectorAll("video") ?? [];
    return videos.length === 2 ? [...videos] : null;
  };
  const together = (first, second) => {
    if (!second.seeking && Math.abs(first.currentTime - second.currentTime) > 0.08) {
      second.currentTime = first.currentTime;
    }
  };
  // Media events do not bubble, so they are caught on their way down.
  const listen = (name, act) => document.addEventListener(name, (event) => {
    const videos = event.target instanceof HTMLVideoElement && pair(event.target);
    if (videos) act(videos, event.target);
  }, true);

  listen("loadeddata", (videos) => {
    if (videos.some((video) => video.readyState < 2)) return;
    for (const video of videos) {
      video.currentTime = 0;
      video.play().catch(() => {});
    }
  });
  listen("timeupdate", ([first, second], target) => target === first && together(first, second));
  listen("seeked", ([first, second], target) => target === first && together(first, second));
  listen("pause", ([first, second], target) => target === first && second.pause());
  listen("play", ([first, second], target) => target === first && second.play().catch(() => {}));
})();
