//! What the system says of this process.

use prometheus::proto::MetricFamily;

/// Under the names that exporters have for it; nothing but on Linux.
pub fn process() -> Vec<MetricFamily> {
    #[cfg(target_os = "linux")]
    {
        use std::sync::LazyLock;

        use prometheus::core::Collector as _;
        use prometheus::process_collector::ProcessCollector;

        // One for all times: when the process began is computed from when the machine did, which may be corrected meanwhile.
        static PROCESS: LazyLock<ProcessCollector> = LazyLock::new(ProcessCollector::for_self);
        PROCESS.collect()
    }
    #[cfg(not(target_os = "linux"))]
    Vec::new()
}
