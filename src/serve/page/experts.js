// The picture of the load of experts.
"use strict";

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim().split(" ").map(Number);

// One row a layer, one column an expert: how often it was chosen beside what an even share would be.
function picture({ layers, experts, used, tokens }) {
  const canvas = $("picture");
  canvas.width = experts;
  canvas.height = layers.length;
  canvas.style.height = Math.max(48, Math.min(layers.length * 5, 190)) + "px";
  const [low, high] = [color("--low"), color("--high")];
  const image = new ImageData(experts, Math.max(1, layers.length));
  let idle = 0;
  let most = { share: 0 };
  layers.forEach(({ layer, load }, y) => {
    const total = load.reduce((a, b) => a + b, 0) || 1;
    load.forEach((n, x) => {
      const share = (n / total) * experts;
      if (!n) idle++;
      if (share > most.share) most = { share, layer, expert: x };
      // An even share is a third of the way, three times as much the whole.
      const t = Math.min(1, Math.sqrt(share / 3));
      for (let c = 0; c < 3; c++) image.data[4 * (y * experts + x) + c] = low[c] + (high[c] - low[c]) * t;
      image.data[4 * (y * experts + x) + 3] = 255;
    });
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
  $("experts-words").textContent = `${layers.length} layers of ${experts} experts, ${used} a token, over the last ${tokens} tokens. ` +
    (tokens ? `Most loaded: expert ${most.expert} of layer ${most.layer}, ${most.share.toFixed(1)} times an even share; ${idle} idle.` : "");
}

let polling = 0;
async function poll() {
  clearTimeout(polling);
  if ($("experts").hidden || document.hidden) return;
  try {
    const reply = await fetch("v1/experts?model=" + encodeURIComponent(model), { headers: headers() });
    if (reply.ok) picture(await reply.json());
  } catch {
    // The next one may come through.
  }
  polling = setTimeout(poll, running ? 400 : 2000);
}

function toggleExperts(on) {
  $("experts").hidden = !on;
  $("experts-toggle").setAttribute("aria-pressed", on);
  store.write("experts", on);
  poll();
}
