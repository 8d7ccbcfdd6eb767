//! Which NVIDIA GPUs the kernels of a build run on, by compute capability.

/// Tensor cores on 16 x 8 x 16 halves and copies in the background (own.cu): Ampere and later.
const MIN: i32 = 80;
/// From here on the kernel crates are built for one GPU's own instructions ("90a"), which no other runs.
const EXACT: i32 = 90;

/// Why kernels do not run on a GPU of a capability (90 for 9.0), if they do not: those of mistral.rs hold machine code alone, for the
/// capability that they were `built` for (`CUDA_COMPUTE_CAP`; None if the build asked a GPU), and it runs on those of the same generation
/// that are not older. A launch that finds no code would end the process.
pub(super) fn unfit(gpu: i32, built: Option<&str>) -> Option<String> {
    let words = |capability: i32| format!("{}.{}", capability / 10, capability % 10);
    if gpu < MIN {
        return Some(format!("compute capability {}, and the kernels need {}", words(gpu), words(MIN)));
    }
    let digits: String = built?.chars().filter(char::is_ascii_digit).collect();
    let built: i32 = digits.parse().ok()?;
    let built = if built < 20 { built * 10 } else { built };
    let runs = if built >= EXACT { gpu == built } else { gpu / 10 == built / 10 && gpu >= built };
    (!runs).then(|| {
        format!(
            "compute capability {}, and this build is for {}: build with CUDA_COMPUTE_CAP={gpu}",
            words(gpu),
            words(built)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_runs_on_its_generation_and_from_hopper_on_where_it_was_built_for() {
        for (gpu, built) in
            [(80, "80"), (86, "80"), (89, "8.6"), (89, "89"), (90, "90"), (90, "90a"), (120, "120")]
        {
            assert_eq!(unfit(gpu, Some(built)), None, "{gpu} {built}");
        }
        for (gpu, built) in
            [(80, "89"), (90, "80"), (90, "89"), (100, "90"), (103, "100"), (121, "120"), (80, "90")]
        {
            let why = unfit(gpu, Some(built)).unwrap_or_default();
            assert!(why.contains(&format!("CUDA_COMPUTE_CAP={gpu}")), "{gpu} {built}: {why}");
        }
        // What the build asked of the GPU at hand is not known here.
        assert_eq!(unfit(80, None), None);
        for built in [None, Some("80")] {
            assert_eq!(unfit(75, built).unwrap(), "compute capability 7.5, and the kernels need 8.0");
        }
    }
}
