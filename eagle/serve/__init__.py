"""A chat server: one process with OpenAI's routes, in front of a queue whose rows are decoded together.

    python -m eagle.serve --pair demo

text         tokens to text while they arrive; stop strings
scheduler    the queue and the thread that owns the model
requests     a request's fields to keywords of `EagleModel.generate`; messages, processors, refusal beside it
answers      from the decoding thread to a client that may leave; replies: OpenAI's forms of it; logprobs
guard        whose requests are answered, and how large they may be
app          the routes; service: the model behind them, its counters (metrics) and its log
steps        an answer's steps with their draft trees; page, page.html: what shows them in a browser
fastchat     the same process as a worker of FastChat's
options      the arguments that name a pair and how it drafts
"""
