//! Slots of a device's memory for experts, the rest of which lie where its kernels read them more slowly.

/// Whose slot a missing expert takes, of those that the token does not use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Eviction {
    /// That of the expert whose last use is longest ago.
    #[default]
    Lru,
    /// That of the expert that was used least, all counts being halved every 256 tokens; of equally used ones that whose last use is
    /// longest ago.
    LfuAged,
    /// That of the expert whose last use is longest ago, but none of those in slots that were used most since the slots were empty: up to
    /// half of the slots are theirs, as many as a step can do without.
    PinnedLru,
}

/// Slots for the experts of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertSlots {
    /// How many each layer has; where it has fewer experts, one for each. With fewer than a token uses experts there is no cache: what it
    /// would hold would never be used again, so kernels read where all experts lie.
    pub slots: usize,
    /// Whose slot a missing expert takes.
    pub eviction: Eviction,
}
