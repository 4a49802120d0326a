"""The page of a human review: no outside resources, usable with keys alone."""

STYLE = """
header{position:sticky;top:0;padding:.8rem 0;background:var(--paper);border-bottom:1px solid var(--line)}
h1{font-size:1.4rem;margin:0}article{padding:1.2rem 0;border-bottom:1px solid var(--line)}article h2{font-size:1rem}
.answers{display:grid;grid-template-columns:1fr 1fr;gap:1rem}
@media(max-width:44rem){.answers{grid-template-columns:1fr}}
.answers section{margin:0;padding:.2rem 1rem;border:0;border-radius:.7rem;background:var(--raised)}
.answers h3{margin:.6rem 0 0}article p{white-space:pre-wrap;overflow-wrap:anywhere}.question{font-weight:600}
fieldset{border:0;padding:.5rem 0;display:flex;gap:.3rem 1.2rem;flex-wrap:wrap}legend{padding:0}
input[type=text]{font:inherit;color:inherit;background:var(--paper);border:1px solid var(--muted);border-radius:.4rem;
padding:.25rem .5rem;width:min(30rem,90%)}
button{font:inherit;font-weight:600;color:var(--paper);background:var(--candidate);border:0;border-radius:.4rem;
padding:.4rem 1.1rem;cursor:pointer}
"""
"""What the page has beside the common stylesheet."""

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Review of answers</title><style>@STYLE@</style></head><body><header><h1>Review of answers</h1>
<p>Judge each pair by the passages: is it right, and does it say no more than they do?
Keys 1 to 4 choose, j and k move.</p>
<label>Your name <input type="text" id="reviewer" maxlength="200" autocomplete="name"></label>
<button id="save" type="button">Save verdicts</button> <output id="state" aria-live="polite">0 of @COUNT@</output>
</header><main>@ARTICLES@</main><script>
"use strict";
const review = "@ID@", articles = [...document.querySelectorAll("article")], kept = "serin-review-" + review;
const reviewer = document.getElementById("reviewer"), state = document.getElementById("state");
const of = article => {
  const chosen = article.querySelector("input:checked");
  return chosen && {item: article.dataset.item, choice: chosen.value, time: article.dataset.time || "",
                    comment: article.querySelector(".comment").value};
};
const all = () => articles.map(of).filter(Boolean);
const show = () => { state.value = `${all().length} of @COUNT@`; };
const keep = () => {
  show();
  const now = JSON.stringify({reviewer: reviewer.value, verdicts: all()});
  try { localStorage.setItem(kept, now); } catch { /* a private window keeps nothing */ }
};
try {
  const before = JSON.parse(localStorage.getItem(kept) || "{}");
  reviewer.value = before.reviewer || "";
  for (const one of before.verdicts || []) {
    const article = articles.find(a => a.dataset.item === one.item);
    if (!article) continue;
    article.querySelector(`input[value="${one.choice}"]`).checked = true;
    article.querySelector(".comment").value = one.comment;
    article.dataset.time = one.time;
  }
} catch { /* nothing was kept */ }
show();
document.addEventListener("change", event => {
  const article = event.target.closest("article");
  if (article && event.target.type === "radio") article.dataset.time = new Date().toISOString();
  keep();
});
document.addEventListener("keydown", event => {
  if (event.target.type === "text" || event.ctrlKey || event.metaKey || event.altKey) return;
  const at = articles.findIndex(article => article.contains(document.activeElement));
  if (event.key === "j" || event.key === "k") {
    const next = articles[Math.min(articles.length - 1, Math.max(0, at + (event.key === "j" ? 1 : -1)))];
    next.focus();
    next.scrollIntoView({block: "center"});
  } else if ("1234".includes(event.key) && at >= 0) {
    articles[at].querySelectorAll("input[type=radio]")[Number(event.key) - 1].click();
  }
});
document.getElementById("save").addEventListener("click", () => {
  if (!reviewer.value.trim()) { reviewer.focus(); state.value = "Write your name first."; return; }
  if (!all().length) { state.value = "Nothing is judged yet."; return; }
  const text = JSON.stringify({review, reviewer: reviewer.value.trim(), verdicts: all()}, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = `verdicts-${review.slice(0, 12)}.json`;
  link.click();
});
</script></body></html>
"""
