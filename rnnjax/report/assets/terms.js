// What the words of the page mean: a "?" behind each with a sentence, and more to fold out. The page needs no other
// page for it; the same at length is on the page of the course that is named, and linked where its place is known.

// Where it stands: the word, a sentence that begins with it, more of it, the page of the course and its heading.
const TERMS = {
  "text-title": [
    "Surprise", "is −log p of the symbol that came, in nats; ln 2 = 0.69 nats are one bit. Its mean is the loss: e to the loss is among how many equally likely symbols the network seems to choose.",
    ["At every place the network gives each possible symbol a probability p. If the symbol that comes had p = 0.5, the surprise is 0.69 nats, as much as the toss of a coin tells; with p = 0.01 it is 4.6 nats; what was certain costs nothing.",
      "A nat belongs to the natural logarithm as a bit belongs to that of base 2: divide nats by 0.693 to have bits.",
      "Coloured by surprise, a text shows where the network is at a loss: where a word begins, at a name, at all that nothing before it announced."], 6, "hello"],
  "labels-title": [
    "AUC", "is how often a unit is higher at a symbol where the label holds than at one where it does not: 0.5 is chance, 1 is perfect. The bar is what the best of all units reaches by luck, and p how often luck does as well.",
    ["A label is a question about each symbol of the text with yes or no for an answer, such as: is it inside quotes? A unit that is “low” is low where the label holds. A label that is a number, such as the place in the line, has a correlation in place of the AUC.",
      "Among hundreds of units the best one looks good by luck. So the first half of the text ranks the units, and the second half scores them. And the whole search is made again with the label shifted along the text, where there is nothing to find: the bar is the best score of those searches.",
      "The threshold is the value from which on the unit says yes; accuracy is how often it is right, yes and no counting alike.",
      "A unit that tells a label need not be used by the network: rnnjax ablate holds it still and measures what that costs."], 9, "the-equation"],
  "units-title": [
    "A unit", "is one number of the network: of its state (h, c), or of a gate. Its deviation is how far it moves over the text.",
    ["L1.c.175 is number 175 of the cell state c of layer 1. The hidden state h is what a layer shows, to the next layer and to itself one step later; the cell state c of an LSTM is its memory; gates (i, f, o; in a GRU r, z) are numbers between 0 and 1, made anew at every step.",
      "Most units look like noise. Few are alone in what they know: a network spreads what it knows over many."], 4, "step-by-step"],
  "training-title": [
    "Loss", "is the mean surprise of a symbol, in nats. Training: what the network is adapted to; validation: text that it is not adapted to, by which the best checkpoint is chosen; test: text that nothing was chosen by.",
    ["The loss of training is measured while the network changes, the others with the network as it stands. The loss of the text on this page is one more number, since it is another text.",
      "If validation rises while training falls, the network learns its text by heart: stop earlier, drop out more, or bring more text.",
      "The gradient norm is how strongly a step of training would pull at the weights. High spikes say that it explodes now and then; clipping shortens them."], 6, "a-book"],
  "gradient-title": [
    "The gradient by lag", "says how much what came k steps ago can teach the network. Where it is nearly zero, nothing is learned about what lies so far back.",
    ["Going one step back multiplies the gradient by the matrix of that step. If this shrinks it on average, it falls exponentially: a straight line on this scale. What has fallen to a thousandth drowns in the gradients of nearer steps.",
      "Training in chunks cuts it off at the length of a chunk, whatever the network could do. In an LSTM the factor is the forget gate: kept near 1, the line stays up."], 3, "the-equation"],
  "gates-title": [
    "A gate", "is a number between 0 (lets nothing pass) and 1 (lets everything pass). A forget gate at 1 keeps its cell as it is.",
    ["A forget gate of 0.9 keeps 0.9 of its cell at each step: half of it after 7 steps, a tenth after 22. About 1 / (1 − f) steps are remembered.",
      "Saturated is a gate below 0.1 or above 0.9: it decides rather than mixes. A forget gate that is always open is a memory that is never cleared, an input gate that is always shut lets nothing in; and both hardly learn any more, as a sigmoid is flat at its ends."], 4, "step-by-step"],
  "lyapunov-title": [
    "A Lyapunov exponent", "is the rate at which a small change of the state grows (above zero) or dies out (below), in nats a step; −0.1 is a memory of about ten steps.",
    ["Change the state by very little and let both go on with the same text: the distance goes like e to the power of exponent times steps. There are as many exponents as numbers in the state, one for each direction; the largest comes first.",
      "All below zero: every small change is forgotten in the end. One just below zero: something is kept for long, which is what a memory needs. Above zero: chaos; small differences grow, and gradients explode with them."], 3, "what-it-looks-like-in-two-dimensions"],
  "writer-title": [
    "Temperature", "divides the logits before one symbol is drawn: below 1 the likely becomes likelier, above 1 the text becomes wilder.",
    ["Logits are the numbers that the network puts out, one a symbol; e to each of them, divided by the sum of all, are the probabilities (softmax). At temperature 1 symbols are drawn as the network believes; near 0 it is always the likeliest one, and the text soon goes round in a loop.",
      "What is written here is computed in this page. It holds the weights, and asks no server."], 6, "a-book"],
};

function addTerms() {
  for (const [id, [term, sentence, more, number, heading]] of Object.entries(TERMS)) {
    const [file, name] = shared.course[number];
    const title = shared.site ? make("a", { href: `${shared.site}course/${file}.html#${heading}`, target: "_blank", rel: "noopener" }, name) : name;
    const course = make("p", { class: "hint" }, `At length: page ${number} of the course in the documentation, “`, title, "”.");
    const details = make("details", {}, make("summary", {}, "More"), ...more.map((text) => make("p", {}, text)), course);
    const meaning = make("div", { class: "meaning", id: `${id}-meaning` }, make("p", {}, make("strong", {}, `${term} `), sentence), details);
    meaning.hidden = true;
    const button = make("button", { type: "button", class: "term", "aria-expanded": "false", "aria-controls": meaning.id, "aria-label": `What ${term} means`, title: `What ${term} means` }, "?");
    const show = (open) => {
      meaning.hidden = !open;
      button.setAttribute("aria-expanded", String(open));
    };
    button.addEventListener("click", () => show(meaning.hidden));
    for (const part of [button, meaning]) {
      part.addEventListener("keydown", (event) => {
        if (event.key !== "Escape" || meaning.hidden) return;
        show(false);
        button.focus();
      });
    }
    byId(id).after(button, meaning);
  }
}
