// What the words of the page mean: a "?" behind each, with a sentence and the page of the course that explains it.

const COURSE = { 3: "Why it forgets, and why it explodes", 4: "The LSTM", 6: "A language model, character by character", 9: "Interpretable cells" };
const TERMS = {
  "text-title": ["Surprise", "is −log p of the symbol that came, in nats; ln 2 = 0.69 nats are one bit. Its mean is the loss: e to the loss is among how many equally likely symbols the network seems to choose.", 6],
  "labels-title": ["AUC", "is how often a unit is higher at a symbol where the label holds than at one where it does not: 0.5 is chance, 1 is perfect. The bar is what the best of all units reaches by luck, and p how often luck does as well.", 9],
  "units-title": ["A unit", "is one number of the network: of its state (h, c), or of a gate. Its deviation is how far it moves over the text.", 4],
  "training-title": ["Loss", "is the mean surprise of a symbol, in nats. Training: what the network is adapted to; validation: text that it is not adapted to, by which the best checkpoint is chosen; test: text that nothing was chosen by.", 6],
  "gradient-title": ["The gradient by lag", "says how much what came k steps ago can teach the network. Where it is nearly zero, nothing is learned about what lies so far back.", 3],
  "gates-title": ["A gate", "is a number between 0 (lets nothing pass) and 1 (lets everything pass). A forget gate at 1 keeps its cell as it is.", 4],
  "lyapunov-title": ["A Lyapunov exponent", "is the rate at which a small change of the state grows (above zero) or dies out (below), in nats a step; −0.1 is a memory of about ten steps.", 3],
  "writer-title": ["Temperature", "divides the logits before one symbol is drawn: below 1 the likely becomes likelier, above 1 the text becomes wilder.", 6],
};

function addTerms() {
  for (const [id, [term, sentence, pageNumber]] of Object.entries(TERMS)) {
    const meaning = make("span", { class: "meaning", id: `${id}-meaning` }, make("strong", {}, `${term} `), `${sentence} More on page ${pageNumber} of the course, “${COURSE[pageNumber]}”.`);
    meaning.hidden = true;
    const button = make("button", { type: "button", class: "term", "aria-expanded": "false", "aria-controls": meaning.id, "aria-label": `What ${term} means`, title: `What ${term} means` }, "?");
    button.addEventListener("click", () => {
      meaning.hidden = !meaning.hidden;
      button.setAttribute("aria-expanded", String(!meaning.hidden));
    });
    byId(id).after(button, meaning);
  }
}
