//! Random bytes to store: the databases must not be able to compress them away.

use quorate_jepsen::Rng;

/// So many of them.
pub(crate) fn payload(bytes: usize, rng: &mut Rng) -> Vec<u8> {
    std::iter::repeat_with(|| rng.next_u64().to_le_bytes()).flatten().take(bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_as_long_as_asked_and_differ() {
        let mut rng = Rng::new(1);
        let (one, other) = (payload(13, &mut rng), payload(13, &mut rng));
        assert_eq!((one.len(), other.len()), (13, 13));
        assert_ne!(one, other);
    }
}
