"use strict";
const bars = [...document.querySelectorAll(".bar")];
const cards = [...document.querySelectorAll("article")];
const search = document.getElementById("search");
const everything = document.getElementById("all");

function update() {
  const wanted = bars.filter((bar) => bar.getAttribute("aria-pressed") === "true");
  const text = search.value.trim().toLowerCase();
  let shown = 0;
  for (const card of cards) {
    const fits =
      wanted.every((bar) => card.dataset.k.includes(` ${bar.dataset.k} `)) &&
      card.dataset.name.toLowerCase().includes(text);
    card.hidden = !fits;
    shown += fits;
  }
  document.getElementById("shown").textContent = `${shown} of ${cards.length}`;
  everything.hidden = !wanted.length && !text;
}

for (const bar of bars) {
  bar.addEventListener("click", () => {
    bar.setAttribute("aria-pressed", bar.getAttribute("aria-pressed") !== "true");
    update();
  });
}
search.addEventListener("input", update);
everything.addEventListener("click", () => {
  for (const bar of bars) bar.setAttribute("aria-pressed", "false");
  search.value = "";
  update();
});
update();
