#!/usr/bin/env python3
"""What `frugal bench --json` prints, of ik_llama.cpp: for `frugal bench --against`, with the same options on both sides.

    peer_bench.py MODEL.gguf [--threads 2] [--prompt 512] [--decode 32] [--depth 128] [--batches 1,8,32] [--runs 5]

ppN is one prompt of N tokens; tgB is B sequences of --depth tokens each, all given --decode tokens more, one a step. Figures are tokens a
second, medians of the runs after one warm-up; token ids are random. Its C interface is called from Python, without HTTP, tokenizer or
sampling. Its attention aborts on several sequences of fewer than 128 tokens. Needs: pip install ik-llama-cpp-python
"""

import argparse
import json
import random
import statistics
import time

import ik_llama_cpp._ctypes_api as llama

# Tokens computed in one call at most.
CALL = 512


class Peer:
    def __init__(self, args, sequences):
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        # Weights in the order in which its kernels are fastest; a mapped file cannot be reordered.
        params.repack_tensors = not args.no_repack
        params.use_mmap = args.no_repack
        model = llama.llama_model_load_from_file(args.model.encode(), params)
        if not model:
            raise SystemExit(f"{args.model} cannot be loaded")
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        params = llama.llama_context_default_params()
        params.n_ctx = max(args.prompt, sequences * (args.depth + (args.runs + 1) * args.decode)) + 64
        params.n_batch = params.n_ubatch = CALL
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = args.threads
        params.flash_attn = True
        self.context = llama.llama_init_from_model(model, params)
        if not self.context:
            raise SystemExit("there is no memory for its context")
        self.batch = llama.llama_batch_init(CALL, 0, 1)
        self.random = random.Random(1)

    def forget(self):
        llama.llama_kv_cache_clear(self.context)

    def tokens(self, count):
        return [self.random.randrange(3, self.vocabulary) for _ in range(count)]

    def compute(self, rows):
        """Rows are (token, position, sequence, whether its logits are wanted)."""
        batch = self.batch
        for begin in range(0, len(rows), CALL):
            call = rows[begin : begin + CALL]
            batch.n_tokens = len(call)
            for i, (token, position, sequence, logits) in enumerate(call):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, logits
                batch.seq_id[i][0] = sequence
            if llama.llama_decode(self.context, batch) != 0:
                raise SystemExit("llama_decode failed")

    def prompt(self, sequence, tokens):
        self.compute([(t, i, sequence, i == len(tokens) - 1) for i, t in enumerate(tokens)])


def rate(tokens, run):
    begun = time.perf_counter()
    run()
    return tokens / (time.perf_counter() - begun)


def prefill(peer, args):
    rates = []
    for _ in range(args.runs + 1):
        peer.forget()
        tokens = peer.tokens(args.prompt)
        rates.append(rate(args.prompt, lambda: peer.prompt(0, tokens)))
    return round(statistics.median(rates[1:]), 2)


def decode(peer, args, sequences):
    peer.forget()
    for sequence in range(sequences):
        peer.prompt(sequence, peer.tokens(args.depth))
    position = args.depth

    # From run to run the sequences grow: depths differ by some tokens, and prompts are computed once.
    def run():
        nonlocal position
        for _ in range(args.decode):
            peer.compute([(t, position, s, True) for s, t in enumerate(peer.tokens(sequences))])
            position += 1

    rates = [rate(sequences * args.decode, run) for _ in range(args.runs + 1)]
    return round(statistics.median(rates[1:]), 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    for name, default in {"threads": 2, "prompt": 512, "decode": 32, "depth": 128, "runs": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--no-repack", action="store_true", help="leave weights in the file's order")
    args = parser.parse_args()
    batches = [int(batch) for batch in args.batches.split(",")]
    peer = Peer(args, max(batches))
    figures = {f"pp{args.prompt}": prefill(peer, args)}
    figures.update({f"tg{sequences}": decode(peer, args, sequences) for sequences in batches})
    print(json.dumps(figures))


main()
