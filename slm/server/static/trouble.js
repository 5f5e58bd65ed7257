// What went wrong, in words, and what can be done about it: another try, or the server's key.

const WORDS = {
  busy: "The server is busy. It will have time again soon.",
  gone: "The server does not answer. What is written stays here.",
  frozen: "The model has not answered for a while. Wait, or try again.",
  locked: "This server asks for a key.",
};

const $ = (id) => document.getElementById(id);
let again = () => {};

/** Show an error, whose `kind` may be one of the above, until clear(); `retry` is called for another try. */
export function tell({ kind, message }, retry) {
  const wrong = kind === "locked" && sessionStorage.getItem("key");
  $("problem").textContent = wrong ? "That is not the server's key." : (WORDS[kind] ?? message);
  $("unlock").hidden = kind !== "locked";
  $("retry").hidden = kind === "locked" || !retry;
  again = retry;
  if (kind === "locked") $("key").focus();
}

export function clear() {
  $("problem").textContent = "";
  $("unlock").hidden = $("retry").hidden = true;
}

$("retry").addEventListener("click", () => again());
$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value);
  $("key").value = "";
  again();
});
