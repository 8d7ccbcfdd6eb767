#!/usr/bin/env python3
"""Writes a model of random weights in a real one's shape: for speed only, its text is noise.

    synth_model.py OUT.gguf --tokenizer ANY.gguf [--layers 12] [--experts 128] ...

Architecture qwen3moe, by default twelve layers of Qwen3-30B-A3B's: 4.7 GB, and as much memory to make it. Weights are Q4_K; the embedding,
the output, the values and half of the down projections are Q6_K, as in files of type Q4_K_M. Tokenizer and chat template are those of
another file. Needs: pip install numpy gguf
"""

import argparse

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

# Values in a block of Q4_K and Q6_K.
BLOCK = 256
Q4_K, Q6_K = GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q6_K


def blocks(rng, count, kind, deviation):
    """Random blocks whose values have mean 0 and this standard deviation."""
    data = rng.integers(0, 256, size=(count, 144 if kind == Q4_K else 210), dtype=np.uint8)

    def half(column, value):
        data[:, column : column + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)

    if kind == Q4_K:
        # Codes from 0 to 15, which deviate by 4.6; all scales and minima, in six bits, are 32.
        scale = deviation / (32 * 4.6)
        half(0, scale)
        half(2, 7.5 * scale)
        data[:, 4:12] = 32 | 2 << 6
        data[:, 12:16] = 0
    else:
        # Codes from -32 to 31, which deviate by 18.5; all scales are 16.
        data[:, 192:208] = 16
        half(208, deviation / (16 * 18.5))
    return data


def write(args):
    rng = np.random.default_rng(args.seed)
    out = GGUFWriter(args.out, "qwen3moe")
    tokenizer = GGUFReader(args.tokenizer)
    for name, field in tokenizer.fields.items():
        if name.startswith("tokenizer."):
            if field.types[0] == GGUFValueType.ARRAY:
                out.add_array(name, field.contents())
            else:
                out.add_key_value(name, field.contents(), field.types[0])
    vocabulary = len(tokenizer.fields["tokenizer.ggml.tokens"].data)
    out.add_name(args.out.rsplit("/", 1)[-1].removesuffix(".gguf"))
    out.add_vocab_size(vocabulary)
    out.add_context_length(32768)
    out.add_block_count(args.layers)
    out.add_embedding_length(args.hidden)
    out.add_feed_forward_length(3 * args.hidden)
    out.add_head_count(args.heads)
    out.add_head_count_kv(args.kv_heads)
    out.add_key_length(args.head_dim)
    out.add_value_length(args.head_dim)
    out.add_rope_freq_base(1e6)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_expert_count(args.experts)
    out.add_expert_used_count(args.top_k)
    out.add_expert_feed_forward_length(args.expert_width)

    def matrix(name, *shape, kind=Q4_K, deviation=0.02):
        data = blocks(rng, int(np.prod(shape)) // BLOCK, kind, deviation)
        out.add_tensor(name, data.reshape(*shape[:-1], -1), raw_dtype=kind)

    def norm(name, width):
        out.add_tensor(name, np.ones(width, np.float32))

    hidden, experts, width = args.hidden, args.experts, args.expert_width
    queries, keys = args.heads * args.head_dim, args.kv_heads * args.head_dim
    matrix("token_embd.weight", vocabulary, hidden, kind=Q6_K, deviation=0.5)
    matrix("output.weight", vocabulary, hidden, kind=Q6_K)
    norm("output_norm.weight", hidden)
    for layer in range(args.layers):
        of = f"blk.{layer}."
        norm(of + "attn_norm.weight", hidden)
        norm(of + "ffn_norm.weight", hidden)
        norm(of + "attn_q_norm.weight", args.head_dim)
        norm(of + "attn_k_norm.weight", args.head_dim)
        matrix(of + "attn_q.weight", queries, hidden)
        matrix(of + "attn_k.weight", keys, hidden)
        matrix(of + "attn_v.weight", keys, hidden, kind=Q6_K)
        matrix(of + "attn_output.weight", hidden, queries)
        router = rng.standard_normal((experts, hidden)) * 0.05
        out.add_tensor(of + "ffn_gate_inp.weight", router.astype(np.float32))
        matrix(of + "ffn_gate_exps.weight", experts, width, hidden)
        matrix(of + "ffn_up_exps.weight", experts, width, hidden)
        matrix(of + "ffn_down_exps.weight", experts, hidden, width, kind=Q6_K if layer < args.layers // 2 else Q4_K)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--tokenizer", required=True, metavar="GGUF", help="file whose tokenizer is taken")
    shape = {"layers": 12, "hidden": 2048, "heads": 32, "kv-heads": 4, "head-dim": 128}
    experts = {"experts": 128, "top-k": 8, "expert-width": 768}
    for name, default in {**shape, **experts, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    write(parser.parse_args())


main()
