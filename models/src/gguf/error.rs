//! What can be wrong with a GGUF file.

use std::path::PathBuf;

/// Why a model file cannot be used. Numbers and names are the file's.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are what the messages say")]
pub enum GgufError {
    /// The operating system refused.
    #[error("cannot read {}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// A directory, device or pipe.
    #[error("{} is not a regular file", path.display())]
    NotAFile { path: PathBuf },
    /// The first four bytes are not `GGUF`.
    #[error("not a GGUF file{instead}")]
    NotGguf { instead: &'static str },
    /// Written for big-endian machines.
    #[error("this is a big-endian GGUF file; only little-endian ones can be read")]
    BigEndian,
    /// Neither version 2 nor 3.
    #[error("GGUF version {0} is not supported; versions 2 and 3 are")]
    Version(u32),
    /// The file ends inside the header.
    #[error("the file ends at byte {len} inside {what}; if it was downloaded, it is not complete")]
    Truncated { what: String, len: usize },
    /// More entries than the rest of the file could hold, or than any model has.
    #[error("the file claims {count} {what}, but at most {most} are supported and fit into the rest of it")]
    AbsurdCount { what: String, count: u64, most: usize },
    /// Metadata and tensor table together pass the limit.
    #[error("metadata and tensor table take more than {limit} bytes")]
    HeaderTooLarge { limit: usize },
    /// A name that is not text.
    #[error("{what} is not valid UTF-8")]
    NotUtf8 { what: String },
    /// Two metadata entries of one name.
    #[error("metadata key {key} appears twice")]
    DuplicateKey { key: String },
    /// A type number that GGUF does not define.
    #[error("metadata key {key} has the unknown type {id}")]
    UnknownValueType { key: String, id: u32 },
    /// A truth value other than 0 and 1.
    #[error("metadata key {key} is a bool with the value {value}")]
    BadBool { key: String, value: u8 },
    /// An array of arrays.
    #[error("metadata key {key} is an array of arrays, which is not supported")]
    NestedArray { key: String },
    /// `general.alignment` is not a power of two of at most 32 bits.
    #[error("general.alignment must be a power of two, not {value}")]
    BadAlignment { value: String },
    /// Two tensors of one name.
    #[error("tensor {tensor} appears twice")]
    DuplicateTensor { tensor: String },
    /// Not between 1 and 4 dimensions.
    #[error("tensor {tensor} has {count} dimensions; 1 to 4 are supported")]
    DimensionCount { tensor: String, count: u32 },
    /// A dimension of zero.
    #[error("tensor {tensor} has no elements")]
    EmptyTensor { tensor: String },
    /// The number of elements or bytes does not fit in 64 bits.
    #[error("the size of tensor {tensor} overflows")]
    SizeOverflow { tensor: String },
    /// A row that ends inside a quantization block.
    #[error("rows of tensor {tensor} have {cols} elements, not a multiple of the {block} in a {ty} block")]
    PartialBlock { tensor: String, cols: u64, ty: &'static str, block: usize },
    /// An offset that is no multiple of the alignment.
    #[error("tensor {tensor} lies at offset {offset}, not a multiple of the alignment {alignment}")]
    Misaligned { tensor: String, offset: u64, alignment: u64 },
    /// Bytes beyond the end of the file: often an incomplete download.
    #[error(
        "tensor {tensor} needs {bytes} bytes at offset {offset} of the data, but the file ends before that; if it was \
         downloaded, it is not complete"
    )]
    OutOfFile { tensor: String, offset: u64, bytes: u64 },
    /// In the order of the CPU backend's kernels, asked for in rows.
    #[error(
        "tensor {tensor} is packed, which only the CPU backend can read: use the file that it was packed from"
    )]
    Packed { tensor: String },
    /// Packed by another version of the program.
    #[error("the file is packed in layout {layout}, and this version reads {known}: pack the original again")]
    Layout { layout: u32, known: u32 },
    /// Not a checksum for each tensor.
    #[error("the packed file has {checksums} checksums for {tensors} tensors")]
    ChecksumCount { checksums: usize, tensors: usize },
    /// The data are not what was packed.
    #[error(
        "the data of tensor {tensor} do not have their checksum: the file is damaged, pack the original again"
    )]
    Checksum { tensor: String },
    /// Two tensors share bytes.
    #[error("tensors {first} and {second} overlap")]
    Overlap { first: String, second: String },
    /// A key that is needed and absent.
    #[error("metadata key {key} is missing")]
    MissingKey { key: String },
    /// A value of another type than needed.
    #[error("metadata key {key} must be {wanted}, not {found}")]
    WrongType { key: String, wanted: &'static str, found: String },
    /// An integer that does not fit.
    #[error("metadata key {key} is {value}, which does not fit in {wanted}")]
    DoesNotFit { key: String, value: String, wanted: &'static str },
    /// A tensor that is needed and absent.
    #[error("tensor {tensor} is missing")]
    MissingTensor { tensor: String },
    /// A format that Frugal does not read.
    #[error("tensor {tensor} has the type {ty}, which is not supported")]
    UnsupportedType { tensor: String, ty: String },
    /// More than a stack of matrices.
    #[error("tensor {tensor} has four dimensions; at most three are supported")]
    FourDimensions { tensor: String },
    /// A split model whose name does not tell where its parts are.
    #[error("this is part {no} of {count} of a split model, but its name does not end in {ending}")]
    PartName { no: u32, count: u32, ending: String },
    /// A later part was given.
    #[error("this is part {no} of {count} of a split model; give the first one, {first}")]
    NotTheFirstPart { no: u32, count: u32, first: String },
    /// A part is not beside the first one.
    #[error("part {no} of {count} of the split model is missing: {}", path.display())]
    MissingPart { no: u32, count: u32, path: PathBuf },
    /// Fewer or more parts in memory than the split has; `no` counts from 0.
    #[error("{given} parts were given, but the split model has {}", if no < given { format!("only {no}") } else { "more".to_owned() })]
    PartsInMemory { given: usize, no: usize },
    /// Something is wrong within a part.
    #[error("part {part} of the split model is unusable")]
    Part { part: String, source: Box<GgufError> },
    /// Parts were swapped or renamed.
    #[error("part {wanted} of the split model says that it is part {found}")]
    PartNumber { wanted: u32, found: u32 },
    /// A part of another split.
    #[error("part {no} of the split model says that there are {found} parts, not {wanted}")]
    PartCount { no: u32, wanted: u32, found: u32 },
    /// A part of another version.
    #[error("part {no} of the split model has GGUF version {found}, the first one {wanted}")]
    PartVersion { no: u32, wanted: u32, found: u32 },
    /// Tensors too many or too few.
    #[error("the split model should have {wanted} tensors in all its parts, but {found} were found")]
    TensorTotal { wanted: u64, found: u64 },
}
