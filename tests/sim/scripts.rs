//! Worlds by hand: situations that chance would hardly find, each with its story.
