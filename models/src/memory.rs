//! How much memory there is, and how much of it the cache gets.
//!
//! Available is what the system says can be had without swapping, and no more than what each enclosing control
//! group leaves. The cache's pages are committed as they are written, so a pool that is too large would show late,
//! as a killed process: it is refused at start instead. So do the buffers of a step, which the first long prompt takes: they are left free.
//!
//! Groups over the whole context have the same number of blocks. A windowed one needs what its sequences see at the
//! same time, however long they are: it gets twice that, so that prefixes outlive their sequences, and what a step writes.

use std::fs;
use std::path::{Path, PathBuf};

use crate::arch::{CacheShape, LoadError, Shape};
use crate::cpu::PARTIALS_MAX;
use crate::kv::{GroupLayout, PageType};
use crate::model_runner::LOGITS_MAX;
use crate::step::GroupKind;

/// Bytes of a thread's room for the item that it is about: one of attention's with queries of 576 values is the largest.
const THREAD_BYTES: u64 = 1 << 20;
/// Bytes for each token of the vocabulary with which a thread chooses one: changed logits, occurrences, weights of 4 each, and a candidate of 8.
const CHOICE_BYTES: u64 = 20;

/// What the cache should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvOptions {
    /// Positions per block; at least 1.
    pub block_tokens: u32,
    /// How it holds keys and values.
    pub page: PageType,
    /// Size of the pool.
    pub size: KvSize,
    /// Longest sequence, prompt and output together. If given, the pool must hold one of that length; if not, it
    /// is what the model was made for, or what the pool holds.
    pub context: Option<u32>,
    /// Sequences that run at the same time; `u32::MAX` if windows are not freed as they pass.
    pub sequences: u32,
    /// Tokens of one step.
    pub step_tokens: u32,
}

/// Size of the block pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvSize {
    /// So many blocks in groups over the whole context.
    Blocks(u32),
    /// As many blocks as fit in so many bytes.
    Bytes(u64),
    /// What the machine has left beside the weights and a step, but no more than all sequences of full length can use.
    Available {
        /// Bytes left for everything else.
        reserve: u64,
        /// Threads that compute in this memory; None if what a step takes is elsewhere, or taken already.
        threads: Option<usize>,
    },
}

impl KvOptions {
    /// The same in memory from which no step takes anything any more.
    pub fn beside_steps(self) -> Self {
        match self.size {
            KvSize::Available { reserve, .. } => {
                Self { size: KvSize::Available { reserve, threads: None }, ..self }
            }
            KvSize::Blocks(_) | KvSize::Bytes(_) => self,
        }
    }

    /// Bytes that an automatic cache leaves free; None if its size is given.
    pub fn left_free(&self, shape: &Shape) -> Option<u64> {
        let KvSize::Available { reserve, threads } = self.size else { return None };
        let step = threads.map_or(0, |threads| step_bytes(shape, self.step_tokens, threads));
        Some(reserve.saturating_add(step))
    }
}

/// Bytes that a step of so many tokens takes at most beside weights and cache, on so many threads of a processor: activations,
/// logits, partial results of attention, which one thread alone does without, and the threads' own room.
pub fn step_bytes(shape: &Shape, tokens: u32, threads: usize) -> u64 {
    let [tokens, vocab, threads] = [tokens.into(), shape.vocab.into(), threads as u64];
    let logits = tokens.saturating_mul(vocab).min(vocab.max(LOGITS_MAX as u64));
    let partials = if threads > 1 { PARTIALS_MAX as u64 } else { 0 };
    let values = shape.step_values.saturating_mul(tokens).saturating_add(logits + partials);
    values.saturating_mul(4).saturating_add(threads.saturating_mul(THREAD_BYTES + CHOICE_BYTES * vocab))
}

/// What the cache will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// In each group.
    pub blocks: Vec<u32>,
    /// Longest sequence.
    pub context: u32,
}

/// Bytes of one block in each group.
///
/// # Errors
/// If a product overflows.
pub fn block_bytes(shape: &Shape, kv: &KvOptions) -> Result<Vec<u64>, LoadError> {
    let bytes = |g: &CacheShape| {
        let [key, value] = [g.key_dim, g.value_dim].map(|dim| kv.page.row_bytes(dim as usize) as u64);
        [g.layers, g.kv_heads, kv.block_tokens]
            .into_iter()
            .try_fold(key.saturating_add(value), |n, factor| n.checked_mul(u64::from(factor)))
    };
    let all = shape.cache.iter().map(bytes).collect::<Option<Vec<_>>>();
    // Larger than any machine: say so in terms of memory.
    all.ok_or_else(|| too_much(shape, u64::MAX, 0, 0))
}

/// The groups as the store wants them.
pub fn layouts(shape: &Shape, pool: &Pool) -> Vec<GroupLayout> {
    let layout = |(g, &blocks): (&CacheShape, &u32)| GroupLayout {
        layers: g.layers as usize,
        kv_heads: g.kv_heads as usize,
        key_dim: g.key_dim as usize,
        value_dim: g.value_dim as usize,
        blocks: blocks as usize,
    };
    shape.cache.iter().zip(&pool.blocks).map(layout).collect()
}

/// Blocks of a group that are of use, whatever the others have.
fn useful(kind: GroupKind, kv: &KvOptions) -> u64 {
    let (sequences, block) = (u64::from(kv.sequences.max(1)), u64::from(kv.block_tokens));
    match kind {
        GroupKind::Full => u64::MAX,
        GroupKind::Window { window } => {
            // A query's window may begin anywhere in a block, so it can touch one block more.
            let seen = u64::from(window.max(1) - 1).div_ceil(block) + 1;
            2 * sequences * seen + u64::from(kv.step_tokens).div_ceil(block)
        }
        GroupKind::State => 2 * sequences,
    }
}

/// What a cache of so many blocks in the groups over the whole context costs.
struct Costs {
    /// Bytes of a block and useful blocks, of each group.
    groups: Vec<(u64, u64)>,
}

impl Costs {
    fn bytes(&self, blocks: u64) -> u64 {
        let group = |&(bytes, useful): &(u64, u64)| bytes.saturating_mul(blocks.min(useful));
        self.groups.iter().map(group).fold(0, u64::saturating_add)
    }

    /// The most blocks that so many bytes hold.
    fn fit(&self, bytes: u64) -> u64 {
        let (mut low, mut high) = (0, u64::from(u32::MAX));
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            match self.bytes(middle) <= bytes {
                true => low = middle,
                false => high = middle - 1,
            }
        }
        low
    }
}

/// Decides the pool. `available` is the memory before weights are loaded, if it is known.
///
/// A context that was not asked for shrinks to what the pool holds, with a warning; one that was is an error then.
///
/// # Errors
/// If not even one block fits, or one sequence of the asked length; if the asked context is longer than the model's.
pub fn plan(shape: &Shape, kv: &KvOptions, available: Option<u64>) -> Result<Pool, LoadError> {
    assert!(kv.block_tokens > 0, "blocks hold at least one position");
    if let Some(asked) = kv.context
        && asked > shape.context
    {
        return Err(LoadError::ContextTooLong { asked, model: shape.context });
    }
    let context = kv.context.unwrap_or(shape.context);
    let useful = shape.cache.iter().map(|g| useful(g.kind, kv));
    let costs = Costs { groups: block_bytes(shape, kv)?.into_iter().zip(useful).collect() };
    let per_sequence = context.div_ceil(kv.block_tokens);
    let blocks = match kv.size {
        KvSize::Blocks(blocks) => u64::from(blocks),
        KvSize::Bytes(bytes) => costs.fit(bytes),
        KvSize::Available { .. } => {
            let available = available.ok_or(LoadError::MemoryUnknown)?;
            let reserve = kv.left_free(shape).unwrap_or(0);
            let free = available.saturating_sub(shape.weight_bytes).saturating_sub(reserve);
            let fit = costs.fit(free);
            if fit == 0 {
                return Err(too_much(shape, costs.bytes(1), reserve, available));
            }
            fit.min(u64::from(per_sequence) * u64::from(kv.sequences.max(1)))
        }
    };
    let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
    let cache = costs.bytes(u64::from(blocks.max(1)));
    if let Some(available) = available
        && shape.weight_bytes.saturating_add(cache) > available
    {
        return Err(too_much(shape, cache, 0, available));
    }
    let tokens = u64::from(blocks) * u64::from(kv.block_tokens);
    if blocks == 0 || (tokens < u64::from(context) && kv.context.is_some()) {
        return Err(LoadError::CacheTooSmall { blocks, tokens, context });
    }
    if tokens < u64::from(context) {
        tracing::warn!(
            tokens,
            model = context,
            "the KV cache holds less than the model's context, which is cut to fit"
        );
    }
    let of_group = |&(_, useful): &(u64, u64)| u32::try_from(useful).unwrap_or(u32::MAX).min(blocks);
    let context = u32::try_from(tokens).unwrap_or(u32::MAX).min(context);
    Ok(Pool { blocks: costs.groups.iter().map(of_group).collect(), context })
}

fn too_much(shape: &Shape, cache: u64, reserve: u64, available: u64) -> LoadError {
    let mib = |bytes: u64| bytes >> 20;
    LoadError::Memory {
        weights: mib(shape.weight_bytes),
        cache: mib(cache),
        reserve: mib(reserve),
        available: mib(available),
    }
}

/// Bytes this process could still take; None where the system does not say (other than Linux).
pub fn available() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let system = meminfo_available(&meminfo)?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(group_files(&groups).iter().filter_map(|files| files.left()).fold(system, u64::min))
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn meminfo_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

const V2_LIMITS: &[&str] = &["memory.max", "memory.high"];
const V1_LIMITS: &[&str] = &["memory.limit_in_bytes"];

/// Where one control group tells its limits and use.
#[derive(Clone, Debug, PartialEq, Eq)]
struct GroupFiles {
    folder: PathBuf,
    /// Above the first processes are killed, above the second (version 2) they are slowed until hardly anything moves.
    limits: &'static [&'static str],
    usage: &'static str,
    /// Of `memory.stat`: page cache, which gives way, be it read once or often. A model file that was served here before is among it.
    reclaimable: [&'static str; 2],
}

impl GroupFiles {
    /// Bytes below the lowest limit; None if there is no limit (`max`, or a number beyond all memory).
    fn left(&self) -> Option<u64> {
        let read = |name: &str| fs::read_to_string(self.folder.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let limit = self.limits.iter().filter_map(|limit| number(limit)).min()?;
        let stat = read("memory.stat").unwrap_or_default();
        let reclaimable: u64 = self.reclaimable.iter().map(|name| stat_value(&stat, name)).sum();
        Some(limit.saturating_sub(number(self.usage)?.saturating_sub(reclaimable)))
    }
}

fn stat_value(stat: &str, name: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    stat.lines().find_map(value).unwrap_or(0)
}

/// The memory groups of `/proc/self/cgroup` (versions 2 and 1), each with those that enclose it. A container sees
/// its own group as the root, so the root always counts.
fn group_files(groups: &str) -> Vec<GroupFiles> {
    let mut all = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (root, limits, usage, reclaimable) = if controllers.is_empty() {
            ("/sys/fs/cgroup", V2_LIMITS, "memory.current", ["active_file", "inactive_file"])
        } else if controllers.split(',').any(|c| c == "memory") {
            let reclaimable = ["total_active_file", "total_inactive_file"];
            ("/sys/fs/cgroup/memory", V1_LIMITS, "memory.usage_in_bytes", reclaimable)
        } else {
            continue;
        };
        for ancestor in Path::new(path.trim_start_matches('/')).ancestors() {
            let folder = Path::new(root).join(ancestor);
            all.push(GroupFiles { folder, limits, usage, reclaimable });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        // 2 layers x 2 heads x (8 + 8) x 2 bytes = 128 bytes a position.
        let group = CacheShape { kind: GroupKind::Full, layers: 2, kv_heads: 2, key_dim: 8, value_dim: 8 };
        Shape { vocab: 10, context: 1000, cache: vec![group], weight_bytes: 50_000, step_values: 30 }
    }

    fn options(size: KvSize, context: Option<u32>) -> KvOptions {
        let page = PageType::F16;
        KvOptions { block_tokens: 16, page, size, context, sequences: 2, step_tokens: 512 }
    }

    #[test]
    fn the_pool_is_what_is_asked_for_or_what_is_left() {
        let plan = |size, context, available| plan(&shape(), &options(size, context), available);
        let pool = |blocks, context| Pool { blocks: vec![blocks], context };
        assert_eq!(plan(KvSize::Blocks(100), None, None).unwrap(), pool(100, 1000));
        assert_eq!(plan(KvSize::Bytes(2048 * 70 + 5), Some(900), None).unwrap(), pool(70, 900));
        let rest = KvSize::Available { reserve: 10_000, threads: None };
        // 63 blocks a sequence.
        assert_eq!(plan(rest, None, Some(1 << 30)).unwrap(), pool(126, 1000));
        assert_eq!(plan(rest, None, Some(60_000 + 2048 * 5 + 7)).unwrap(), pool(5, 80));
    }

    #[test]
    fn a_step_is_left_free() {
        let (mib, long) = (1 << 20, 1 << 23);
        let with = |threads| KvSize::Available { reserve: 10_000, threads };
        let plan = |threads, available| plan(&shape(), &options(with(threads), None), Some(available));
        // 512 tokens of 30 values and 10 logits; on threads partial results and room, which grows with the vocabulary.
        for (threads, step) in [(1, 4 * 512 * 40 + mib + 200), (8, 4 * 512 * 40 + (64 + 8) * mib + 1600)] {
            assert_eq!(step_bytes(&shape(), 512, threads), step);
            assert_eq!(options(with(Some(threads)), None).left_free(&shape()), Some(10_000 + step));
            let pool = plan(Some(threads), 60_000 + step + 2048 * 5 + 7).unwrap();
            assert_eq!(pool, Pool { blocks: vec![5], context: 80 });
            let error = plan(Some(threads), 60_000 + step).unwrap_err().to_string();
            assert!(error.contains(&format!("reserve {} MiB", (10_000 + step) / mib)), "{error}");
        }
        assert_eq!(options(with(Some(8)), None).beside_steps().left_free(&shape()), Some(10_000));
        assert_eq!(options(KvSize::Blocks(1), None).left_free(&shape()), None);
        // Not all logits of a long step are held at once, unless that is one row; a claim beyond all memory stays one.
        let wide = Shape { vocab: long, step_values: 0, ..shape() };
        assert_eq!(step_bytes(&wide, 2048, 1), 4 * (32 << 20) + mib + 20 * u64::from(long));
        assert_eq!(step_bytes(&Shape { step_values: u64::MAX, ..shape() }, 2, 1), u64::MAX);
    }

    #[test]
    fn a_windowed_group_gets_what_its_sequences_see() {
        // As gpt-oss: as many windowed layers as others. A query sees 5 blocks of 16 at most.
        let full = shape().cache[0];
        let window = CacheShape { kind: GroupKind::Window { window: 60 }, ..full };
        let shape = Shape { cache: vec![window, full], ..shape() };
        let plan = |size, context| plan(&shape, &options(size, context), Some(1 << 30)).unwrap();
        // Twice 2 sequences of 5 blocks, and 32 of a step.
        assert_eq!(plan(KvSize::Blocks(1000), None), Pool { blocks: vec![52, 1000], context: 1000 });
        // Short sequences use as much of either.
        assert_eq!(plan(KvSize::Blocks(50), None), Pool { blocks: vec![50, 50], context: 800 });
        // 2048 bytes a block.
        assert_eq!(plan(KvSize::Bytes(2048 * 100), None), Pool { blocks: vec![50, 50], context: 800 });
        assert_eq!(plan(KvSize::Bytes(2048 * 200 - 1), None).blocks, [52, 147]);
        let rest = KvSize::Available { reserve: 0, threads: None };
        assert_eq!(plan(rest, None), Pool { blocks: vec![52, 126], context: 1000 });
        let never_freed = KvOptions { sequences: u32::MAX, ..options(KvSize::Blocks(1000), None) };
        assert_eq!(super::plan(&shape, &never_freed, None).unwrap().blocks, [1000, 1000]);
        // What is planned is what is committed.
        let pool = plan(KvSize::Bytes(2048 * 200), None);
        let bytes = block_bytes(&shape, &options(KvSize::Blocks(1), None)).unwrap();
        let all: u64 = bytes.iter().zip(&pool.blocks).map(|(b, n)| b * u64::from(*n)).sum();
        assert_eq!(all, 2048 * 200);
        assert_eq!(layouts(&shape, &pool).iter().map(|l| l.blocks).collect::<Vec<_>>(), [52, 148]);
    }

    #[test]
    fn what_does_not_fit_is_refused_in_words() {
        let error = |size, context, available| {
            plan(&shape(), &options(size, context), available).unwrap_err().to_string()
        };
        let rest = KvSize::Available { reserve: 1 << 20, threads: None };
        assert!(error(rest, None, Some(1 << 20)).contains("not enough memory"));
        assert!(error(rest, None, None).contains("set the size"));
        assert!(error(KvSize::Blocks(1 << 20), None, Some(1 << 20)).contains("not enough memory"));
        assert!(error(KvSize::Blocks(0), None, None).contains("0 blocks"));
        assert!(
            error(KvSize::Blocks(62), Some(993), None).contains("less than the configured context of 993")
        );
        assert!(error(KvSize::Blocks(62), Some(1001), None).contains("made for 1000"));
        let absurd = CacheShape { layers: u32::MAX, kv_heads: u32::MAX, ..shape().cache[0] };
        let shape = Shape { cache: vec![absurd], ..shape() };
        assert!(plan(&shape, &options(KvSize::Blocks(1), None), None).is_err());
    }

    #[test]
    fn both_versions_of_control_groups_are_understood() {
        let v2 = group_files("0::/user.slice/app\n");
        assert_eq!(v2.len(), 3);
        assert_eq!(v2[0].folder, Path::new("/sys/fs/cgroup/user.slice/app"));
        assert_eq!((v2[2].folder.as_path(), v2[2].limits), (Path::new("/sys/fs/cgroup/"), V2_LIMITS));
        let v1 = group_files("9:name=systemd:/\n4:memory:/a\n2:cpu,cpuacct:/\nnonsense\n");
        assert_eq!(v1.len(), 2);
        assert_eq!(v1[0].folder, Path::new("/sys/fs/cgroup/memory/a"));
        assert_eq!(stat_value("cache 4\ninactive_file 77\ninactive_file_x 9\n", "inactive_file"), 77);
        let meminfo = "MemTotal:       16000 kB\nMemAvailable:    8000 kB\n";
        assert_eq!(meminfo_available(meminfo), Some(8000 * 1024));
        assert_eq!(meminfo_available("MemFree: 1 kB"), None);
    }

    #[test]
    fn a_group_leaves_its_limit_less_what_cannot_be_reclaimed() {
        let folder = std::env::temp_dir().join(format!("frugal-group-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
        let group = GroupFiles {
            folder: folder.clone(),
            limits: &["max", "high"],
            usage: "current",
            reclaimable: ["active_file", "inactive_file"],
        };
        write("max", "1000\n");
        write("current", "700\n");
        assert_eq!(group.left(), Some(300));
        write("memory.stat", "inactive_file 100\nactive_file 200\n");
        assert_eq!(group.left(), Some(600));
        write("high", "900\n");
        assert_eq!(group.left(), Some(500));
        write("max", "max\n");
        assert_eq!(group.left(), Some(500));
        write("high", "max\n");
        assert_eq!(group.left(), None);
        fs::remove_dir_all(&folder).unwrap();
    }
}
