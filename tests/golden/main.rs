//! Goldens: models computed by an independent engine (llama.cpp), and the law that a row's bits depend on its
//! tokens and positions alone.
//!
//! `tests/fixtures/*.gguf` are tiny models with random weights; `golden/*.json` holds, for five prompts of 1 to 400
//! tokens, the log-probabilities of all tokens after the prompt and 24 greedy tokens. `exact` was computed with
//! weights expanded to F32 and F32 arithmetic throughout; `native` with 8-bit activations (F16: with F16 ones).

mod compare;
mod drive;
mod fixture;
mod fixtures;
mod invariance;
mod packed;
mod real;
mod scheduled;
mod split;
mod upcycle;
