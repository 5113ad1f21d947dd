"""A chat server: FastChat's controller and OpenAI-compatible API in front of workers that decode with `EagleModel`.

    python -m eagle.serve --pair demo

text       tokens to text while they arrive; stop strings
prompts    FastChat's prompt -> messages -> the tokenizer's own chat template
worker     one model behind FastChat's worker interface
api        FastChat's API server with size limits and status codes
steps      an answer's steps with their draft trees; page, page.html: what shows them in a browser
launch     the processes, their ports and their end
"""
