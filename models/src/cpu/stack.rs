//! Experts that are packed when a token first needs them, and meanwhile by threads that take only time that nobody else wants.
//!
//! A server is ready once it can answer, not once it has touched every expert: of 128 a token needs eight. Each part of a matrix is packed
//! once, by whoever needs it first; its bytes are those that packing everything at load gives.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, Once, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::memory::Bytes;
use super::weight::{PACK_BYTES, pack_panels};
use super::{Core, CpuWeight};
use crate::gguf;
use crate::quant::{GgmlType, PANEL, Pack};
use crate::weights::TensorView;

/// A stack of matrices, packed in parts as they are needed.
#[derive(Debug)]
pub(super) struct Stack {
    ty: GgmlType,
    cols: usize,
    rows: usize,
    packing: Pack,
    /// Owns the memory from `start` on; its bytes are never looked at as a whole.
    _memory: Bytes,
    start: *mut u8,
    panel_bytes: usize,
    /// Panels of a matrix.
    panels: usize,
    /// Panels of a part, the last one of a matrix excepted.
    each: usize,
    /// Of each matrix its parts.
    packed: Box<[Once]>,
    /// Parts that are not packed.
    missing: AtomicUsize,
    /// Rows as in the file, from here on; None when all is packed.
    source: Mutex<Option<(gguf::Bytes, usize)>>,
}

// SAFETY: the memory behind `start` is the stack's own. A part is written once, by the one thread in its `Once`, and read only after that.
unsafe impl Send for Stack {}
// SAFETY: as above.
unsafe impl Sync for Stack {}

impl Stack {
    /// `view`, which lies in a file, in `memory` of its size when packed.
    pub(super) fn new(view: &TensorView<'_>, packing: Pack, mut memory: Bytes) -> Option<Self> {
        let place = view.place?;
        let (panel_bytes, panels) = (PANEL * view.row_bytes(), view.rows.div_ceil(PANEL));
        assert!(!view.packed && memory.len() == view.experts * panels * panel_bytes, "room for its panels");
        assert!(
            place.file[place.start..].as_ptr() == view.data.as_ptr(),
            "the view's place is where its data lie"
        );
        let each = (PACK_BYTES / panel_bytes.max(1)).clamp(1, panels.max(1));
        let parts = view.experts * panels.div_ceil(each);
        Some(Self {
            ty: view.ty,
            cols: view.cols,
            rows: view.rows,
            packing,
            start: memory.as_mut_ptr(),
            _memory: memory,
            panel_bytes,
            panels,
            each,
            packed: (0..parts).map(|_| Once::new()).collect(),
            missing: AtomicUsize::new(parts),
            source: Mutex::new(Some((place.file.clone(), place.start))),
        })
    }

    /// Panels of matrix `expert`, which lie one behind the other; packs what is missing of them.
    pub(super) fn panels_of(&self, expert: usize, panels: Range<usize>) -> &[u8] {
        assert!(expert * self.parts() < self.packed.len(), "an expert of the stack");
        assert!(panels.start <= panels.end && panels.end <= self.panels, "panels of the matrix");
        if panels.is_empty() {
            return &[];
        }
        for part in panels.start / self.each..panels.end.div_ceil(self.each) {
            self.pack(expert * self.parts() + part);
        }
        let first = expert * self.panels + panels.start;
        // SAFETY: inside the memory by the assertions; these parts are packed, so nobody writes to them.
        unsafe {
            std::slice::from_raw_parts(
                self.start.add(first * self.panel_bytes),
                panels.len() * self.panel_bytes,
            )
        }
    }

    /// Parts of all matrices.
    pub(super) fn len(&self) -> usize {
        self.packed.len()
    }

    /// Bytes of all panels.
    pub(super) fn bytes(&self) -> usize {
        self.len() / self.parts().max(1) * self.panels * self.panel_bytes
    }

    /// The parts of matrix `expert` that are not packed yet.
    pub(super) fn missing(&self, expert: usize) -> impl Iterator<Item = usize> {
        let all = match self.missing.load(Ordering::Relaxed) {
            0 => 0..0,
            _ => expert * self.parts()..(expert + 1) * self.parts(),
        };
        all.filter(|&part| !self.packed[part].is_completed())
    }

    /// Packs a part, unless it is; waits if another thread is about it.
    pub(super) fn pack(&self, part: usize) {
        self.packed[part].call_once(|| {
            let source = self.source.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let (file, start) = source.expect("kept for as long as a part is missing");
            let (expert, first) = (part / self.parts(), part % self.parts() * self.each);
            let panels = first..self.panels.min(first + self.each);
            let row = self.ty.row_bytes(self.cols);
            let start = start + expert * self.rows * row;
            let view = TensorView {
                name: "",
                ty: self.ty,
                cols: self.cols,
                rows: self.rows,
                experts: 1,
                data: &file[start..][..self.rows * row],
                packed: false,
                place: None,
            };
            let at = (expert * self.panels + panels.start) * self.panel_bytes;
            // SAFETY: a part of the memory, which no other thread writes or reads while it is packed.
            let to = unsafe {
                std::slice::from_raw_parts_mut(self.start.add(at), panels.len() * self.panel_bytes)
            };
            pack_panels(&view, self.packing, panels.start, to);
            let [first, end] =
                [panels.start, panels.end].map(|panel| start + self.rows.min(panel * PANEL) * row);
            file.release(first..end);
            if self.missing.fetch_sub(1, Ordering::Relaxed) == 1 {
                self.source.lock().unwrap_or_else(PoisonError::into_inner).take();
            }
        });
    }

    /// Parts of a matrix.
    fn parts(&self) -> usize {
        self.panels.div_ceil(self.each)
    }
}

impl Core {
    /// Packs what is missing of these matrices of each weight, on all threads; how long that took, if something was missing.
    pub(super) fn make_ready(
        &self,
        weights: &[&CpuWeight],
        matrices: impl Iterator<Item = usize> + Clone,
    ) -> Option<Duration> {
        let mut missing = Vec::new();
        for stack in weights.iter().filter_map(|weight| weight.stack()) {
            for matrix in matrices.clone() {
                missing.extend(stack.missing(matrix).map(|part| (stack, part)));
            }
        }
        if missing.is_empty() {
            return None;
        }
        let begun = Instant::now();
        self.pool.for_each(missing.len(), |_, i| missing[i].0.pack(missing[i].1));
        Some(begun.elapsed())
    }
}

/// Whether packers may begin another part. Under a control group's quota they take from computing what they use, whatever their
/// priority, so most of them wait while a step runs. Nobody waits in the midst of a part, which a step may be waiting for.
#[derive(Debug)]
struct Gate {
    /// Packers that never wait.
    free: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// A step runs.
    busy: bool,
    stop: bool,
}

impl Gate {
    /// Beside so many threads that a quota has to spare; all go on without a quota.
    fn new(spare: Option<usize>) -> Self {
        Self { free: spare.unwrap_or(usize::MAX), state: Mutex::default(), changed: Condvar::new() }
    }

    /// Waits until packer `i` may go on; false if it is to stop.
    fn pass(&self, i: usize) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |state: &mut State| state.busy && !state.stop && i >= self.free;
        !self.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner).stop
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }
}

/// Threads that pack what nobody has needed yet. Dropped, they stop after the part they are about.
#[derive(Debug, Default)]
pub(super) struct Packers {
    gate: Option<Arc<Gate>>,
    threads: Vec<JoinHandle<()>>,
}

impl Packers {
    /// So many of them, for these stacks in this order; none if there is nothing to do. `spare` as in
    /// [`spare_threads`](super::pool::spare_threads).
    pub(super) fn start(stacks: Vec<Arc<Stack>>, threads: usize, spare: Option<usize>) -> Self {
        match stacks.is_empty() {
            true => Self::default(),
            false => Self::behind(Gate::new(spare), stacks, threads),
        }
    }

    fn behind(gate: Gate, stacks: Vec<Arc<Stack>>, threads: usize) -> Self {
        let gate = Arc::new(gate);
        let work = Arc::new((stacks, AtomicUsize::new(0)));
        let packer = |i: usize| {
            let (work, gate) = (Arc::clone(&work), Arc::clone(&gate));
            std::thread::Builder::new().name(format!("frugal-pack-{i}")).spawn(move || {
                yield_to_others();
                let (stacks, next) = &*work;
                loop {
                    if !gate.pass(i) {
                        return;
                    }
                    match nth_part(stacks, next.fetch_add(1, Ordering::Relaxed)) {
                        Some((stack, part)) => stack.pack(part),
                        None => break,
                    }
                }
                // The last one to be done says so, unless there was so little that they still were being started.
                if Arc::into_inner(work).is_some() {
                    tracing::info!("all experts are packed");
                }
            })
        };
        let threads = (0..threads).map_while(|i| match packer(i) {
            Ok(thread) => Some(thread),
            Err(error) => {
                // Then they are packed as they are needed.
                tracing::warn!(%error, "no thread that packs experts ahead");
                None
            }
        });
        Self { threads: threads.collect(), gate: Some(gate) }
    }

    /// A step begins, or has ended.
    pub(super) fn set_busy(&self, busy: bool) {
        if let Some(gate) = &self.gate {
            gate.set(|state| state.busy = busy);
        }
    }
}

/// A part, counted through all stacks.
fn nth_part(stacks: &[Arc<Stack>], mut n: usize) -> Option<(&Stack, usize)> {
    for stack in stacks {
        if n < stack.len() {
            return Some((stack, n));
        }
        n -= stack.len();
    }
    None
}

impl Drop for Packers {
    fn drop(&mut self) {
        if let Some(gate) = &self.gate {
            gate.set(|state| state.stop = true);
        }
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Leaves this thread only the time that no other wants.
fn yield_to_others() {
    // SAFETY: changes a priority, of the calling thread alone (Linux); if that is refused, it stays as it was.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 19);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::format;
    use crate::samples::{Random, Stored};
    use crate::weights::Place;

    const COLS: usize = 512;
    /// No whole number of panels; parts of 15 panels, the last one shorter.
    const ROWS: usize = 8 * 40 - 3;
    const EXPERTS: usize = 5;

    /// A stack of random matrices in the middle of a file, and what it is when packed.
    fn stack(experts: usize) -> (Stack, Vec<u8>) {
        let random = Stored::random(&mut Random(5), GgmlType::Q8_0, [COLS, ROWS, experts], 1.0);
        let mut file = vec![7; 33];
        file.extend_from_slice(&random.data);
        let file = gguf::Bytes::Owned(Arc::new(file));
        let place = Some(Place { file: &file, start: 33 });
        let view = TensorView { data: &file[33..], place, ..random.view() };
        let packing = format(view.ty).pack;
        let mut packed = vec![0; experts * ROWS.next_multiple_of(PANEL) * view.row_bytes()];
        pack_panels(&view, packing, 0, &mut packed);
        let mut stack = Stack::new(&view, packing, Bytes::new(packed.len()).unwrap()).unwrap();
        // Parts are as large as pages of memory, which would take a large sample.
        stack.each = 15;
        let parts = experts * stack.parts();
        (stack.packed, stack.missing) = ((0..parts).map(|_| Once::new()).collect(), AtomicUsize::new(parts));
        (stack, packed)
    }

    #[test]
    fn what_is_asked_for_is_packed_and_no_more() {
        let (stack, packed) = stack(EXPERTS);
        assert_eq!(stack.missing(3).collect::<Vec<_>>(), [9, 10, 11]);
        let len = stack.panel_bytes;
        let first = 3 * 40 + 14;
        assert_eq!(stack.panels_of(3, 14..16), &packed[first * len..][..2 * len]);
        assert_eq!(stack.missing(3).collect::<Vec<_>>(), [11]);
        assert!(stack.panels_of(4, 40..40).is_empty());
        assert_eq!(stack.missing.load(Ordering::Relaxed), 3 * EXPERTS - 2);
        assert!(stack.source.lock().unwrap().is_some());
        for expert in 0..EXPERTS {
            assert_eq!(stack.panels_of(expert, 0..40), &packed[expert * 40 * len..][..40 * len]);
            assert_eq!(stack.missing(expert).count(), 0);
        }
        assert!(stack.source.lock().unwrap().is_none(), "the file is no longer needed");
    }

    #[test]
    fn many_threads_see_what_one_packs() {
        let (stack, packed) = stack(EXPERTS);
        let len = stack.panel_bytes;
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (stack, packed) = (&stack, &packed);
                scope.spawn(move || {
                    for i in 0..EXPERTS * 40 {
                        let at = (i * 7 + thread * 31) % (EXPERTS * 40);
                        let panel = stack.panels_of(at / 40, at % 40..at % 40 + 1);
                        assert_eq!(panel, &packed[at * len..][..len]);
                    }
                });
            }
        });
    }

    #[test]
    fn packers_do_all_and_stop_when_dropped() {
        let stacks: Vec<_> = (1..4).map(|experts| Arc::new(stack(experts).0)).collect();
        let mut packers = Packers::start(stacks.clone(), 3, None);
        // Without a quota a step is nothing to wait for.
        packers.set_busy(true);
        for thread in packers.threads.drain(..) {
            thread.join().unwrap();
        }
        assert!(stacks.iter().all(|stack| stack.missing.load(Ordering::Relaxed) == 0));
        // Nothing to wait for, whatever they have done by then.
        drop(Packers::start(vec![Arc::new(stack(EXPERTS).0)], 2, None));
    }

    #[test]
    fn under_a_quota_only_spare_threads_pack_beside_a_step() {
        let parts = 3 * EXPERTS;
        let behind = |spare: usize| {
            let gate = Gate::new(Some(spare));
            gate.set(|state| state.busy = true);
            let stack = Arc::new(stack(EXPERTS).0);
            (Packers::behind(gate, vec![Arc::clone(&stack)], 3), stack)
        };
        let missing = |stack: &Stack| stack.missing.load(Ordering::Relaxed);
        let (mut packers, stack) = behind(0);
        // What the step needs is packed all the same.
        stack.panels_of(3, 0..40);
        assert_eq!(missing(&stack), parts - 3);
        packers.set_busy(false);
        packers.threads.drain(..).for_each(|thread| thread.join().unwrap());
        assert_eq!(missing(&stack), 0);
        // The one that need not wait does all of it; dropping does not wait for the step's end.
        let (mut packers, stack) = behind(1);
        packers.threads.remove(0).join().unwrap();
        assert_eq!(missing(&stack), 0);
        drop(packers);
        let (packers, stack) = behind(0);
        drop(packers);
        assert_eq!(missing(&stack), parts);
    }

    #[test]
    #[should_panic(expected = "an expert of the stack")]
    fn beyond_the_last_expert_there_is_nothing() {
        let (stack, _) = stack(2);
        let _ = stack.panels_of(2, 0..0);
    }
}
