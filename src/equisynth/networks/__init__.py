"""The networks: U-Net, rigid encoder, discriminator. Plain torch modules, 2D and 3D from one definition."""
