import torch

from radtower.labeling.local_llm.full_prompts import score_full_prompts


def test_each_answer_is_the_product_of_its_words(tiny_llm):
    model = tiny_llm("llama")
    prompt = [7, 8, 9]
    questions = [[[20, 1], [20, 2, 3], [20, 2, 4, 5]], [[30, 31, 6], [30, 31, 7], [30, 31, 8, 1]]]
    scores = score_full_prompts(model, prompt, questions)
    assert scores.shape == (2, 3)
    for finding, (num_shared, answers) in enumerate(zip((1, 2), questions, strict=True)):
        for answer, sequence in enumerate(answers):
            with torch.no_grad():
                log_p = model(torch.tensor([prompt + sequence])).logits[0].log_softmax(dim=-1)
            places = range(num_shared, len(sequence))
            expected = sum(log_p[len(prompt) + place - 1, sequence[place]] for place in places)
            torch.testing.assert_close(scores[finding, answer], expected, atol=1e-5, rtol=1e-5)
