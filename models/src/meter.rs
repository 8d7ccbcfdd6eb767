//! What a GPU measures of itself: its energy, and how busy, full and warm it is.
//!
//! A thread of its own asks, because an answer takes a while and a driver that hangs never gives one. Whoever wants the last answer
//! copies it and waits for nobody. Absent on purpose: an answer that was made up. What the device does not say is None.

#[cfg(feature = "nvml")]
mod nvml;
mod total;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

#[cfg(feature = "nvml")]
pub use nvml::of_nvidia;
use total::Total;

/// Between two questions. NVIDIA's counters go on about ten times a second; more often they would be read in vain.
const PERIOD: Duration = Duration::from_millis(100);

/// An answer of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Counter of energy, in millijoules since some moment of the device's own.
    pub energy_millijoules: Option<u64>,
    /// Present power, in milliwatts.
    pub power_milliwatts: Option<u64>,
    /// Percent of the device's last sampling period in which it computed.
    pub busy_percent: Option<u32>,
    /// Bytes of its memory that are taken, by whomever.
    pub memory_used: Option<u64>,
    /// Bytes of its memory.
    pub memory: Option<u64>,
    /// Degrees Celsius.
    pub celsius: Option<u32>,
}

/// Asks a device; an error is in words. One may follow the other in any order.
pub type Probe = Box<dyn FnMut() -> Result<Sample, String> + Send>;

/// Which device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// As its maker calls it.
    pub name: String,
    /// By which it is known to every tool.
    pub uuid: String,
}

/// Asks a device from now on, until it is dropped.
#[derive(Debug)]
pub struct Meter {
    device: Device,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    stop: Condvar,
}

#[derive(Debug)]
struct State {
    total: Total,
    /// Of the last question; None if it was answered with an error.
    sample: Option<Sample>,
    stopped: bool,
}

impl Meter {
    /// Asks once, and then from a thread.
    ///
    /// # Errors
    /// If the first question is answered with an error, or the OS gives no thread.
    pub fn start(device: Device, mut probe: Probe) -> Result<Self, String> {
        let sample = probe()?;
        let mut total = Total::default();
        total.add(Instant::now(), &sample);
        let state = State { total, sample: Some(sample), stopped: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), stop: Condvar::new() });
        let theirs = shared.clone();
        let ask = move || theirs.ask(probe);
        std::thread::Builder::new().name("meter".to_owned()).spawn(ask).map_err(|error| error.to_string())?;
        Ok(Self { device, shared })
    }

    /// Which device it asks.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Picojoules from when it was started to [`PERIOD`] ago, or longer where answers took longer: they become known in leaps, each of
    /// which is spread over as much time as it is of, so that those who run at that moment do not pay for the others. Never less than it
    /// once was. None if the device does not
    /// measure energy, or just now the thread that asks writes down an answer.
    pub fn energy(&self) -> Option<u128> {
        let state = match self.shared.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        state.total.until(Instant::now())
    }

    /// Picojoules as far as they are known; None if the device does not measure energy.
    pub fn energy_seen(&self) -> Option<u128> {
        self.shared.state().total.seen()
    }

    /// The last answer; None if it was an error.
    pub fn sample(&self) -> Option<Sample> {
        self.shared.state().sample
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.shared.state().stopped = true;
        self.shared.stop.notify_one();
    }
}

impl Shared {
    /// Held for as long as it takes to copy a few numbers.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, mut probe: Probe) {
        let mut state = self.state();
        loop {
            (state, _) = self.stop.wait_timeout(state, PERIOD).unwrap_or_else(PoisonError::into_inner);
            if state.stopped {
                return;
            }
            drop(state);
            let (answer, at) = (probe(), Instant::now());
            state = self.state();
            state.take(answer, at);
        }
    }
}

impl State {
    /// A line in the log when answers cease, and one when they come again.
    fn take(&mut self, answer: Result<Sample, String>, at: Instant) {
        match answer {
            Ok(sample) => {
                if self.sample.is_none() {
                    tracing::info!("the GPU says again what it uses");
                }
                self.total.add(at, &sample);
                self.sample = Some(sample);
            }
            Err(why) => {
                if self.sample.is_some() {
                    tracing::warn!(%why, "the GPU does not say what it uses; it is asked on");
                }
                self.total.miss();
                self.sample = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn it_asks_until_it_is_dropped() {
        let (asked, questions) = mpsc::channel();
        let mut counter = 500;
        let probe = move || {
            counter += 1;
            // Whoever counts questions may have gone.
            let _ = asked.send(());
            if counter == 503 {
                return Err("lost".to_owned());
            }
            Ok(Sample { energy_millijoules: Some(counter), ..Sample::default() })
        };
        let meter = Meter::start(Device::default(), Box::new(probe)).expect("the first answer is one");
        assert_eq!((meter.energy(), meter.energy_seen()), (Some(0), Some(0)), "it counts from now");
        for _ in 0..5 {
            questions.recv_timeout(Duration::from_secs(60)).expect("a question");
        }
        // The fifth is being answered; of the fourth all is known.
        let seen = meter.energy_seen().expect("there is a counter");
        assert!([3_000_000_000, 4_000_000_000].contains(&seen), "{seen}");
        assert!(meter.energy().is_none_or(|settled| settled <= 4_000_000_000));
        drop(meter);
        while questions.recv_timeout(Duration::from_secs(60)).is_ok() {}
        assert_eq!(questions.try_recv(), Err(mpsc::TryRecvError::Disconnected), "the thread has ended");
    }

    #[test]
    fn a_device_that_says_nothing_is_no_meter() {
        let probe = || Err("lost".to_owned());
        assert_eq!(Meter::start(Device::default(), Box::new(probe)).err().as_deref(), Some("lost"));
    }
}
