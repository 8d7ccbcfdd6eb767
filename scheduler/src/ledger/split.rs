//! Shares that add up.

/// `total` in proportion to `weights`, by largest remainder (ties to the earlier): the shares sum to `total`. Where all
/// weights are 0, equally.
///
/// ```
/// use frugal_scheduler::ledger::split;
/// assert_eq!(split(10, &[1, 1, 1]), [4, 3, 3]);
/// assert_eq!(split(7, &[0, 5, 2]), [0, 5, 2]);
/// assert_eq!(split(3, &[0, 0]), [2, 1]);
/// ```
///
/// # Panics
/// If `total` times the sum of weights passes 128 bits, or there is no weight and something to share.
pub fn split(total: u128, weights: &[u64]) -> Vec<u128> {
    let sum: u128 = weights.iter().map(|&w| u128::from(w)).sum();
    if sum == 0 {
        assert!(!weights.is_empty() || total == 0, "nobody to share with");
        let n = weights.len() as u128;
        return (0..n).map(|i| total / n + u128::from(i < total % n)).collect();
    }
    let product =
        |w: u64| total.checked_mul(u128::from(w)).expect("amounts and weights are bounded by their makers");
    let mut shares: Vec<u128> = weights.iter().map(|&w| product(w) / sum).collect();
    let mut left = total - shares.iter().sum::<u128>();
    if left > 0 {
        let mut order: Vec<usize> = (0..weights.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(product(weights[i]) % sum), i));
        for i in order {
            if left == 0 {
                break;
            }
            shares[i] += 1;
            left -= 1;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_is_lost_and_no_share_is_off_by_one(
            total in 0u128..1 << 70,
            weights in prop::collection::vec(prop_oneof![Just(0), 0u64..1 << 33, 0u64..9], 1..20),
        ) {
            let shares = split(total, &weights);
            prop_assert_eq!(shares.iter().sum::<u128>(), total);
            let sum: u128 = weights.iter().map(|&w| u128::from(w)).sum();
            for (&share, &w) in shares.iter().zip(&weights) {
                if let Some(floor) = (total * u128::from(w)).checked_div(sum) {
                    prop_assert!(share == floor || share == floor + 1);
                    prop_assert!(w > 0 || share == 0);
                }
            }
        }
    }
}
